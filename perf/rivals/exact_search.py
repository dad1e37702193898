"""Exact search by faiss, or by numpy without it: the ten nearest rows by cosine.

usage: exact_search.py --which | exact_search.py ROWS QUERIES DIM
Reads a number of seconds per line, searches for that long, answers with a line of JSON.
"""

import json
import sys
import time

import numpy

try:
    import faiss
except ImportError:
    faiss = None

K = 10


def load(path, dim):
    rows = numpy.fromfile(path, dtype=numpy.float32).reshape(-1, dim)
    return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)


def with_faiss(rows):
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return lambda query: index.search(query[None, :], K)


def with_numpy(rows):
    def search(query):
        similarity = rows @ query
        nearest = numpy.argpartition(-similarity, K)[:K]
        return nearest[numpy.argsort(-similarity[nearest])]

    return search


def main():
    if sys.argv[1] == "--which":
        print("faiss IndexFlatIP" if faiss else "numpy")
        return
    rows, queries = (load(path, int(sys.argv[3])) for path in sys.argv[1:3])
    search = with_faiss(rows) if faiss else with_numpy(rows)
    for line in sys.stdin:
        latencies = []
        start = last = time.perf_counter()
        while last < start + float(line):
            search(queries[len(latencies) % len(queries)])
            now = time.perf_counter()
            latencies.append(now - last)
            last = now
        p99 = sorted(latencies)[min(len(latencies) * 99 // 100, len(latencies) - 1)]
        print(json.dumps({"rows": len(latencies) * len(rows), "seconds": last - start, "p99": p99}), flush=True)


main()
