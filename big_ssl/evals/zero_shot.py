"""Zero-shot classification and retrieval by name, with their baselines."""

from collections.abc import Mapping

import numpy as np

from big_ssl.evals import emoji, ranking

KS = (1, 5, 10)


def classification(data: emoji.NamedImages, scores: np.ndarray, pixels: np.ndarray, name: str):
    """{"<name><subset>/<metric>": value}: top1, top5, chance, pixel_1nn_top1 of each subset.

    scores: float[N, M], image-name similarity; pixels: the same from emoji.pixel_scores.
    """
    metrics = {}
    for suffix, images, names in emoji.subsets(data):
        positives = data.positives(images, names)
        chosen = np.ix_(images, names)
        rank = ranking.ranks(scores[chosen], positives)
        metrics |= {
            f"{name}{suffix}/top1": ranking.recall_at(rank, 1),
            f"{name}{suffix}/top5": ranking.recall_at(rank, 5),
            f"{name}{suffix}/chance": ranking.chance_at(positives, 1),
            f"{name}{suffix}/pixel_1nn_top1": ranking.recall_at(ranking.ranks(pixels[chosen], positives), 1),
        }
    return metrics


def retrieval(data: emoji.NamedImages, scores: np.ndarray, pixels: np.ndarray, name: str):
    """{"<name><subset>/<direction>_r<k>": value} for both directions, chance and pixels.

    In every subset the pictures and the names are those of the same concepts, one name a
    picture; so "_unseen" here means unseen concepts among themselves.
    """
    metrics = {}
    for suffix, images, names in emoji.subsets(data):
        names = names & np.isin(np.arange(len(names)), data.labels[images])
        positives, chosen = data.positives(images, names), np.ix_(images, names)
        metrics |= _both_ways(scores[chosen], positives, f"{name}{suffix}/")
        metrics |= _both_ways(pixels[chosen], positives, f"{name}{suffix}/pixel_1nn_")
        metrics |= {f"{name}{suffix}/chance_r{k}": ranking.chance_at(positives, k) for k in KS}
    return metrics


def _both_ways(scores, positives, prefix) -> Mapping[str, float]:
    forth = ranking.recalls(scores, positives, KS, f"{prefix}image_to_text_r")
    return forth | ranking.recalls(scores.T, positives.T, KS, f"{prefix}text_to_image_r")
