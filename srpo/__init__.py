"""SRPO Studio's library: Direct-Align and SRPO for flow-matching image models. It knows nothing of any interface."""
