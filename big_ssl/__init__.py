"""Vision foundation models in JAX: CLIP, ALIGN, iBOT, DINOv2 and Florence, trained by one step."""

__version__ = "0.1.0"
