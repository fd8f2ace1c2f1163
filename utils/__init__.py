"""What a reviewer of the paper would never ask about, and the losses, metrics and figures that all
methods share.
"""
