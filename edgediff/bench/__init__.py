"""Latency benchmarks that record the configuration, the machine, the image quality and the
confidence of each figure.

    grid        the configurations to measure
    runner      runs them in turns, each in its own process
    worker      the program of that process
    quality     compares the timed image with the float model's
    machine     describes the machine and its load during the run
    intervals   confidence intervals of medians and ratios
    results     the JSON file
    compare     compares two results, or explains why they are not comparable
    page        writes results as one HTML file, with plots
"""
