"""The same image, made by what a user would pick instead of edgediff.

catalogue     the peers: environment, worker, model
requirements/ the packages of each environment, pinned
environments  a virtual environment of each
conversion    the model in the form that each loads
converters/   what runs in a peer's environment to make it
workers/      what runs there to draw, a few dozen lines each
rounds        all of them in turns, each time in a new process
results       the JSON file
table         what is printed of it
"""
