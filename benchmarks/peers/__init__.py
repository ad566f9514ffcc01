"""The same image from edgediff and from its alternatives, the peers.

catalogue     the peers: environment, worker, model
requirements/ the packages of each environment, pinned
environments  a virtual environment for each peer
conversion    the model in each peer's format
converters/   scripts that run in a peer's environment and convert the model
workers/      scripts that run there and generate images, a few dozen lines each
rounds        all peers in turns, each time in a new process
results       the JSON file
table         the printed table
"""
