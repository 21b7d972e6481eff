from .arguments import expect_attributes as expect_attributes
from .arguments import expect_type as expect_type
from .configuration import Configuration as Configuration
from .configuration import ConfigurationError as ConfigurationError
