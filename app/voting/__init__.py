"""The raters' page: plain files and addresses of their own, as the config of the Gradio page names the models."""
