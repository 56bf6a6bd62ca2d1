"""What the interface can do, as typed calls and generators; nothing here knows Gradio."""
