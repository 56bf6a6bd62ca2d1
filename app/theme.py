"""The look: a quiet theme of system fonts and neutral greys, and the style sheets that finish it."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from app import plots

HERE = Path(__file__).parent
# Plain names, so that no page ever asks a font server.
SANS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]


def theme() -> gr.themes.Base:
    """The Gradio theme: ink on paper, in light and dark."""
    base = gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
        spacing_size=gr.themes.sizes.spacing_md,
    )
    return base.set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#12151a",
        body_text_color="#14181f",
        body_text_color_dark="#e9ecf1",
        body_text_color_subdued="#586271",
        body_text_color_subdued_dark="#9ca7b6",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1d222a",
        background_fill_secondary="#f6f7f9",
        background_fill_secondary_dark="#171b21",
        border_color_primary="#e1e5ea",
        border_color_primary_dark="#2a313b",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1d222a",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_background_fill="transparent",
        block_title_text_color="#586271",
        block_title_text_color_dark="#9ca7b6",
        block_title_text_size="13px",
        block_title_text_weight="500",
        block_info_text_color="#586271",
        block_info_text_color_dark="#9ca7b6",
        block_shadow="none",
        block_shadow_dark="none",
        input_background_fill="#ffffff",
        input_background_fill_dark="#161a20",
        input_border_color="#c3cad3",
        input_border_color_dark="#434c59",
        input_border_color_focus="#4c63e0",
        input_border_color_focus_dark="#8b9dff",
        input_placeholder_color="#6a7482",
        input_placeholder_color_dark="#8b96a5",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_shadow="none",
        input_shadow_dark="none",
        button_primary_background_fill="#1d2530",
        button_primary_background_fill_hover="#2d3746",
        button_primary_background_fill_dark="#e9ecf1",
        button_primary_background_fill_hover_dark="#ffffff",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#12151a",
        button_primary_border_color="#1d2530",
        button_primary_border_color_dark="#e9ecf1",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#f1f3f6",
        button_secondary_background_fill_dark="#262c35",
        button_secondary_background_fill_hover_dark="#303844",
        button_secondary_text_color="#14181f",
        button_secondary_text_color_dark="#e9ecf1",
        button_secondary_border_color="#c3cad3",
        button_secondary_border_color_dark="#434c59",
        slider_color="#3b4fc4",
        slider_color_dark="#a3b3ff",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_selected="#e6e9f0",
        checkbox_label_background_fill_selected_dark="#303844",
        checkbox_label_text_color_selected="#14181f",
        checkbox_label_text_color_selected_dark="#e9ecf1",
    )


def css() -> str:
    """The style sheets, with the difference map's own colours for its legend."""
    sheets = [HERE / "theme.css", *sorted((HERE / "components").glob("*.css"))]
    scale = f":root {{ --difference-scale: {plots.scale_css()}; }}\n"
    return scale + "\n".join(path.read_text(encoding="utf-8") for path in sheets)
