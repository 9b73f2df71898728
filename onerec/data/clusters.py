"""A long history as few representatives: hierarchical k-means over the vectors of one user's items.

Technical report (arXiv 2506.13695, section 2.2, lifelong pathway): a node of n events is split into floor(cbrt(n))
clusters by k-means, down to clusters of at most M events; the event nearest to a cluster's centre stands for it.

Departures:
1. The largest cluster is split first, and splitting ends where one more would exceed the number of representatives: the
   report's 2000 hold for every history.
2. A node of fewer than eight events is split into two where M asks for it: the cube root would leave it whole.
3. Centres start at events that lie far apart, not at random ones, so that training and serving find the same clusters
   for the same history. Lloyd's iterations are few, and a centre that loses all events is dropped.

Shapes: n events, V width of the vectors, k clusters of a node, C clusters in all.
"""

import heapq

import numpy as np

_ITERATIONS = 10


def representatives(
    vectors_nV: np.ndarray, max_clusters: int, max_cluster_items: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster events and choose the one nearest to each centre.

    Where every event may stand for itself, none is compared with another.

    Args:
        vectors_nV: float32, one row an event, oldest first.
        max_clusters: clusters at most.
        max_cluster_items: events of a cluster that is split no further.

    Returns:
        the representatives' places, ascending int64 (C,), and the number (n,) of each event's cluster.
    """
    num_events = len(vectors_nV)
    if num_events <= max_clusters and max_cluster_items == 1:
        everyone = np.arange(num_events)
        return everyone, everyone
    clusters = split_events(vectors_nV, max_clusters, max_cluster_items)
    chosen_C = np.array([_nearest_to_centre(vectors_nV, members) for members in clusters])
    order_C = np.argsort(chosen_C)
    cluster_n = np.empty(num_events, dtype=np.int64)
    for number, place in enumerate(order_C):
        cluster_n[clusters[place]] = number
    return chosen_C[order_C], cluster_n


def split_events(vectors_nV: np.ndarray, max_clusters: int, max_cluster_items: int) -> list[np.ndarray]:
    """Places of each cluster's events: a partition into at most `max_clusters`."""
    open_nodes = [(-len(vectors_nV), 0, np.arange(len(vectors_nV)))]  # largest first, then oldest
    leaves: list[np.ndarray] = []
    while open_nodes:
        _, _, members = heapq.heappop(open_nodes)
        room = max_clusters - len(leaves) - len(open_nodes)
        num_parts = min(max(int(np.cbrt(len(members)) + 1e-9), 2), room)
        if len(members) <= max_cluster_items or num_parts < 2:
            leaves.append(members)
            continue
        labels = k_means(vectors_nV[members], num_parts)
        parts = [members[labels == label] for label in range(labels.max() + 1)]
        if len(parts) == 1:  # all vectors are the same
            leaves.append(members)
        else:
            for part in parts:
                heapq.heappush(open_nodes, (-len(part), int(part[0]), part))
    return leaves


def k_means(vectors_nV: np.ndarray, num_clusters: int) -> np.ndarray:
    """Cluster (n,) of each row, numbered from 0 without gaps; `num_clusters` at most."""
    centres_kV = _far_apart(vectors_nV, num_clusters)
    labels = np.full(len(vectors_nV), -1)
    for _ in range(_ITERATIONS):
        # |x|^2 is the same for all centres.
        nearest = ((centres_kV**2).sum(axis=1) - 2 * (vectors_nV @ centres_kV.T)).argmin(axis=1)
        kept, nearest = np.unique(nearest, return_inverse=True)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        centres_kV = means_of_groups(vectors_nV, labels, len(kept))
    return labels


def means_of_groups(values_nV: np.ndarray, groups_n: np.ndarray, num_groups: int) -> np.ndarray:
    """Mean of the rows of each group that are not NaN, column by column; NaN where a group has none."""
    known_nV = ~np.isnan(values_nV)
    order = np.argsort(groups_n, kind="stable")
    firsts = np.searchsorted(groups_n[order], np.arange(num_groups))
    sums = np.add.reduceat(np.where(known_nV, values_nV, 0)[order], firsts, axis=0)
    counts = np.add.reduceat(known_nV[order], firsts, axis=0, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        return (sums / counts).astype(values_nV.dtype)


def _far_apart(vectors_nV: np.ndarray, number: int) -> np.ndarray:
    """The first row, then again and again the one farthest from all that were taken (Gonzalez 1985)."""
    squares_n = (vectors_nV**2).sum(axis=1)
    taken, distances_n = [0], np.full(len(vectors_nV), np.inf)
    while len(taken) < number:
        newest = taken[-1]
        to_newest_n = squares_n + squares_n[newest] - 2 * (vectors_nV @ vectors_nV[newest])
        distances_n = np.minimum(distances_n, to_newest_n)
        taken.append(int(distances_n.argmax()))
    return vectors_nV[taken]


def _nearest_to_centre(vectors_nV: np.ndarray, members: np.ndarray) -> int:
    vectors = vectors_nV[members]
    distances = ((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1)
    return int(members[distances.argmin()])
