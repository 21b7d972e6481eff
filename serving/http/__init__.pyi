from .app import HttpConfig as HttpConfig
from .app import make_app as make_app
from .process import serve_http as serve_http
