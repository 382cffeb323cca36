"""benchmarks/dinov2_torch.py in a process of its own, for benchmarks/dinov2_step.py."""

from benchmarks import turns


def serve(connection, folder, tower, head, batch, recipe, numbers, product) -> None:
    """Writes a network's weights into folder, then takes its turns.

    "step": a step taken, "product": a lone product of two matrices of the shapes in product. tower, head,
    recipe, numbers: options of dinov2_torch.vit, Head, Recipe and Numbers; batch: as there, in NumPy.
    """
    import torch
    import transformers

    from benchmarks import dinov2_torch

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    network = dinov2_torch.Network(dinov2_torch.vit(**tower), dinov2_torch.Head(tower["width"], **head))
    dinov2_torch.save(network, folder)
    trainer = dinov2_torch.Trainer(network, dinov2_torch.Recipe(**recipe))
    batch = {name: torch.tensor(x) for name, x in batch.items()}
    left, right = (torch.randn(shape) for shape in product)
    tasks = dict(
        step=lambda: trainer.step(batch, dinov2_torch.Numbers(**numbers))["loss"],
        product=lambda: float((left @ right)[0, 0]),
    )
    turns.answer(connection, tasks)
