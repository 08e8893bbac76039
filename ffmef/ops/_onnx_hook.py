"""Tells torch's ONNX exporter about the operators when it is imported, at no cost before."""

from __future__ import annotations

import logging

from ffmef.ops._after_import import after_import

EXPORTER = "torch.onnx._internal.exporter._registration"


def _register() -> None:
    try:
        from ffmef import onnx

        onnx.register()
    except Exception as error:  # the exporter's internals may change; it works without our translations
        logging.getLogger(__name__).warning(
            "torch.onnx does not know ffmef's operators (%s): "
            "give it custom_translation_table=ffmef.onnx.translation_table()",
            error,
        )


def install() -> None:
    """Register the translations as soon as the exporter exists."""
    after_import(EXPORTER, _register)
