from .exposures import load_periods as load_periods
