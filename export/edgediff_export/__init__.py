"""The export stage: a diffusers pipeline in, a bundle out. Runs on a dev machine, with torch.

A folder imports from those below it, never from those above.

export           the order of the steps, from source to bundle
convert          float32 stages into the precision asked for
calibration_set  examples for calibration, from the float model's own images
search/          a quantization plan under a budget of quality and size
targets/         a float32 graph → float16, or int8 for a CPU or a compiling provider
trace/           a torch module → a float32 graph, checked against torch
source/          a hub id, a diffusers folder or a safetensors file → components, one at a time
fidelity/        the cost in quality, by stage and on whole images
graph/           reading, changing, watching and writing ONNX graphs
bundle_folder    a folder on disk, whole or not at all
"""
