"""The Gradio app behind `hf-it3 app` and the Space in `examples/space`."""

from typing import Any


def launch(model: str | None = None, **kwargs: Any) -> Any:
    """Starts the app and serves it until it is interrupted; see [`~hf_it3.app.interface.launch`].

    Raises:
        ImportError: if gradio is missing.
    """
    import os

    # Read when gradio is imported: no usage statistics, no look for newer versions.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from .interface import launch as launch_interface
    except ImportError as error:
        if "gradio" not in str(error):
            raise
        raise ImportError('the app needs gradio: pip install "hf-it3[app]"') from error
    return launch_interface(model, **kwargs)


__all__ = ["launch"]
