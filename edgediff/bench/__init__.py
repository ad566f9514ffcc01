"""Latency benchmarks whose result is evidence: what ran, where, how good the picture was, and how
sure the figure is.

    runner      the grid, interleaved, each configuration in a process of its own
    worker      that process
    machine     what it ran on, and what that did meanwhile
    intervals   how sure a median is
    results     the JSON file, and nothing that is not in it
    compare     two results side by side, or why they are not alike
    page        a result as one HTML file
"""
