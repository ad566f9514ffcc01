"""Latency benchmarks whose result is evidence: what ran, where, how good the image was, and how
sure the figure is.

    grid        what was asked for, as configurations
    runner      these in turns, each in a process of its own
    worker      that process
    quality     the image that was timed against the float model's
    machine     what it ran on, and what that did meanwhile
    intervals   how sure a median is, and a ratio
    results     the JSON file
    compare     two results side by side, or why they are not alike
    page        results as one HTML file, with plots
"""
