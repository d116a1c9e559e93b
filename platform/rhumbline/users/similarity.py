"""Who resembles whom: cosines of choices, the graph of mutual neighbours, clusters. Over `population`.

    found = similarity(people, min_common=10)
    edges_UU = mutual_neighbours(found.cosine_UU, 5)             # each among the other's five nearest
    parts_U = components(edges_UU)
    labels_U, by_number = clusters(found.cosine_UU, None, most=8, seed=0)

Two people are compared at the questions that both answered. U users, Q questions, A options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from rhumbline.users.population import Bools, Floats, Ints, Population

PLANE = 4  # coordinates that clusters are looked for in, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarity:
    """Cosines of every two people."""

    cosine_UU: Floats  # (U, U) in -1..1; NaN where two people have too little in common; 1 on the diagonal
    common_UU: Ints  # (U, U) questions that both answered


def similarity(people: Population, min_common: int = 1) -> Similarity:
    """cos(u, v) = x_u . x_v / (|x_u| |x_v|), x = `Population.signs`, all three over the questions that both answered.

    The report's similarity matrix (section 3.2.2), for people who did not all answer the same questions. A pass counts as
    answered: it agrees with nothing and lengthens the other's vector. NaN below `min_common` questions, and where one of the
    two only passed.
    """
    signs_UQA = people.signs()
    flat = signs_UQA.reshape(len(people.users), -1)
    squares_UQ = (signs_UQA**2).sum(axis=2)
    answered_UQ = people.answered.astype(np.float64)
    product_UU = flat @ flat.T
    norm_UU = squares_UQ @ answered_UQ.T  # |x_u|^2 over what v answered
    common_UU = np.rint(answered_UQ @ answered_UQ.T).astype(np.int64)
    scale_UU = np.sqrt(norm_UU * norm_UU.T)
    cosine_UU = np.divide(product_UU, scale_UU, out=np.full_like(product_UU, np.nan), where=scale_UU > 0)
    cosine_UU = np.where(common_UU >= min_common, np.clip(cosine_UU, -1, 1), np.nan)
    np.fill_diagonal(cosine_UU, 1.0)
    return Similarity(cosine_UU=cosine_UU, common_UU=common_UU)


def mutual_neighbours(cosine_UU: Floats, neighbours: int = 5) -> Bools:
    """(U, U) True where each of two people is among the other's `neighbours` nearest (figure 4 of the report). Symmetric.

    Of equally near ones the earlier user is nearer. People who cannot be compared are nobody's neighbours.
    """
    near_UU = np.where(np.isfinite(cosine_UU), cosine_UU, -np.inf)
    np.fill_diagonal(near_UU, -np.inf)
    first_UU = np.argsort(-near_UU, axis=1, kind="stable")[:, :neighbours]
    among_UU = np.zeros(cosine_UU.shape, dtype=np.bool_)
    np.put_along_axis(among_UU, first_UU, True, axis=1)
    among_UU &= np.isfinite(near_UU)
    mutual_UU: Bools = among_UU & among_UU.T
    return mutual_UU


def components(edges_UU: Bools) -> Ints:
    """(U,) which connected part of the graph each user is in, the largest first; somebody without an edge is a part alone."""
    _, found_U = connected_components(edges_UU, directed=False)
    sizes = np.bincount(found_U)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    out: Ints = rank[found_U]
    return out


def clusters(cosine_UU: Floats, number: int | None, *, most: int, seed: int) -> tuple[Ints, dict[int, float]]:
    """(U,) k-means labels in the plane of the similarity's leading eigenvectors, and the silhouette of every number tried.

    number: of clusters; None takes the one with the best silhouette of 2 to `most`. Label 0 is the largest cluster. With
    fewer than three people, or none who differ, everybody is in one cluster and nothing was tried.
    """
    points_UD = positions(cosine_UU)
    different = len(np.unique(points_UD.round(9), axis=0))
    if len(points_UD) < 3 or different < 2:
        return np.zeros(len(points_UD), dtype=np.int64), {}
    largest = min(different, len(points_UD) - 1)
    tried = [min(number, largest)] if number is not None else list(range(2, min(most, largest) + 1))
    labels: dict[int, Ints] = {
        count: KMeans(count, n_init=10, random_state=seed).fit_predict(points_UD).astype(np.int64) for count in tried
    }
    silhouettes = {count: float(silhouette_score(points_UD, labels[count])) for count in tried}
    chosen = labels[max(silhouettes, key=lambda count: silhouettes[count])]
    order = np.argsort(-np.bincount(chosen), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[chosen], silhouettes


def positions(cosine_UU: Floats, dimensions: int = PLANE) -> Floats:
    """(U, D) classical scaling: sqrt(eigenvalue) times eigenvector of the centred similarity, the largest first.

    Where two people cannot be compared, the mean of the known similarities stands in.
    """
    known = cosine_UU[np.isfinite(cosine_UU) & ~np.eye(len(cosine_UU), dtype=bool)]
    filled_UU = np.where(np.isfinite(cosine_UU), cosine_UU, known.mean() if known.size else 0.0)
    centred_UU = filled_UU - filled_UU.mean(0) - filled_UU.mean(1)[:, None] + filled_UU.mean()
    values_U, vectors_UU = np.linalg.eigh(centred_UU)
    leading = np.argsort(-values_U, kind="stable")[: min(dimensions, len(values_U))]
    vectors = vectors_UU[:, leading]
    vectors = vectors * np.where(vectors.sum(0) < 0, -1.0, 1.0)  # an eigenvector's sign is anybody's choice
    out: Floats = vectors * np.sqrt(np.maximum(values_U[leading], 0.0))
    return out


def order_by_nearness(cosine_UU: Floats) -> Ints:
    """(U,) users in an order that puts similar ones side by side: the leaves of average linkage on 1 - cos."""
    if len(cosine_UU) < 3:
        return np.arange(len(cosine_UU))
    distance_UU = 1.0 - np.where(np.isfinite(cosine_UU), cosine_UU, 0.0)
    np.fill_diagonal(distance_UU, 0.0)
    tree = linkage(squareform((distance_UU + distance_UU.T) / 2, checks=False), "average")
    return np.asarray(leaves_list(tree), dtype=np.int64)


def agreement_with_groups(labels_U: Ints, groups: Sequence[str | None]) -> float | None:
    """The adjusted Rand index of clusters and groups known from elsewhere: 1 the same, 0 by chance. None of fewer than two."""
    known = [(int(label), group) for label, group in zip(labels_U, groups, strict=True) if group is not None]
    if len({group for _, group in known}) < 2:
        return None
    return float(adjusted_rand_score([group for _, group in known], [label for label, _ in known]))


def summary(found: Similarity, edges_UU: Bools) -> Mapping[str, float | None]:
    """Figures of a similarity and its graph: quartiles over pairs of people, edges, parts of two or more people."""
    above = np.triu_indices(len(found.cosine_UU), 1)
    cosines = found.cosine_UU[above]
    comparable = cosines[np.isfinite(cosines)]
    sizes = np.bincount(components(edges_UU), minlength=1)
    low, middle, high = (
        (float(one) for one in np.quantile(comparable, [0.25, 0.5, 0.75])) if comparable.size else (None, None, None)
    )
    return {
        "pairs": len(cosines),
        "comparable_pairs": len(comparable),
        "median_common": float(np.median(found.common_UU[above])) if len(cosines) else None,
        "cosine_mean": float(comparable.mean()) if comparable.size else None,
        "cosine_p25": low,
        "cosine_median": middle,
        "cosine_p75": high,
        "edges": int(edges_UU.sum()) // 2,
        "parts": int((sizes >= 2).sum()),
        "largest_part": int(sizes.max()) if sizes.max(initial=0) >= 2 else 0,
        "without_edge": int((sizes == 1).sum()),
    }
