"""transformers' CLIPModel with PyTorch's AdamW, in a process of its own, for benchmarks/clip_step.py."""

import numpy as np

from benchmarks import turns


def serve(connection, folder, batch, settings, view, product) -> None:
    """Writes a model's weights into folder, then takes its turns.

    "step": a step taken, "product": a lone product of two matrices of the shapes in product. batch:
    images normalised here, and texts; settings: config.optimizer.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.CLIPModel(transformers.CLIPConfig()).train()
    model.save_pretrained(folder)
    left, right = (torch.randn(shape) for shape in product)
    tasks = dict(step=_step(torch, model, batch, settings, view), product=lambda: float((left @ right)[0, 0]))
    turns.answer(connection, tasks)


def _step(torch, model, batch, settings, view):
    """() -> loss of a step taken."""
    scaled = (batch["image"] / 255 - np.asarray(view["mean"])) / np.asarray(view["std"])
    inputs = dict(
        pixel_values=torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32).contiguous(),
        input_ids=torch.tensor(batch["text"]["ids"]).long(),
    )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=2.5e-7,  # ours after the first step of its warm-up
        betas=(settings["b1"], settings["b2"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )

    def step():
        optimizer.zero_grad()
        loss = model(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        return loss.item()

    return step
