"""Preference studies: planned, scheduled, voted on, analysed and handed on. Neither torch nor a page is needed."""
