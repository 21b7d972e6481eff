from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class VersionRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class ShadowRequest(_message.Message):
    __slots__ = ("version", "share")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    version: str
    share: float
    def __init__(self, version: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerStatus(_message.Message):
    __slots__ = ("role", "current_version", "versions", "shadow", "process", "remembers", "ready", "not_ready_because", "faults")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    REMEMBERS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    NOT_READY_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    role: str
    current_version: str
    versions: _containers.RepeatedCompositeFieldContainer[VersionStatus]
    shadow: ShadowReport
    process: str
    remembers: bool
    ready: bool
    not_ready_because: str
    faults: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, role: _Optional[str] = ..., current_version: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[VersionStatus, _Mapping]]] = ..., shadow: _Optional[_Union[ShadowReport, _Mapping]] = ..., process: _Optional[str] = ..., remembers: _Optional[bool] = ..., ready: _Optional[bool] = ..., not_ready_because: _Optional[str] = ..., faults: _Optional[_Iterable[str]] = ...) -> None: ...

class VersionStatus(_message.Message):
    __slots__ = ("version", "path", "readers", "answered", "failed", "refused", "damaged")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    version: str
    path: str
    readers: int
    answered: int
    failed: int
    refused: int
    damaged: str
    def __init__(self, version: _Optional[str] = ..., path: _Optional[str] = ..., readers: _Optional[int] = ..., answered: _Optional[int] = ..., failed: _Optional[int] = ..., refused: _Optional[int] = ..., damaged: _Optional[str] = ...) -> None: ...

class ShadowReport(_message.Message):
    __slots__ = ("version", "share", "compared", "failed", "mean_abs_difference", "mean_difference", "requests")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    MEAN_ABS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    MEAN_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    share: float
    compared: int
    failed: int
    mean_abs_difference: float
    mean_difference: float
    requests: int
    def __init__(self, version: _Optional[str] = ..., share: _Optional[float] = ..., compared: _Optional[int] = ..., failed: _Optional[int] = ..., mean_abs_difference: _Optional[float] = ..., mean_difference: _Optional[float] = ..., requests: _Optional[int] = ...) -> None: ...
