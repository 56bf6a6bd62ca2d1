"""The interface: Gradio at the edges, typed services behind it."""
