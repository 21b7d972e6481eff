from .positives import hold_out_latest as hold_out_latest
