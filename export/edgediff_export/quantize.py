"""x"""
def to_int8(stage,source,cases): raise NotImplementedError
