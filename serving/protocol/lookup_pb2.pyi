from multifacet.serving.protocol import ids_pb2 as _ids_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LookupRequest(_message.Message):
    __slots__ = ("version", "features", "request_id", "traceparent")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    version: str
    features: _containers.RepeatedCompositeFieldContainer[_ids_pb2.FeatureIds]
    request_id: str
    traceparent: str
    def __init__(self, version: _Optional[str] = ..., features: _Optional[_Iterable[_Union[_ids_pb2.FeatureIds, _Mapping]]] = ..., request_id: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class LookupAnswer(_message.Message):
    __slots__ = ("version", "tables", "server_us", "shard_index", "num_shards")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    SERVER_US_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    version: str
    tables: _containers.RepeatedCompositeFieldContainer[TableRows]
    server_us: int
    shard_index: int
    num_shards: int
    def __init__(self, version: _Optional[str] = ..., tables: _Optional[_Iterable[_Union[TableRows, _Mapping]]] = ..., server_us: _Optional[int] = ..., shard_index: _Optional[int] = ..., num_shards: _Optional[int] = ...) -> None: ...

class TableRows(_message.Message):
    __slots__ = ("table", "rows", "row_bytes", "dim", "precision", "num_unknown_ids", "num_rows")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    table: str
    rows: bytes
    row_bytes: int
    dim: int
    precision: str
    num_unknown_ids: int
    num_rows: int
    def __init__(self, table: _Optional[str] = ..., rows: _Optional[bytes] = ..., row_bytes: _Optional[int] = ..., dim: _Optional[int] = ..., precision: _Optional[str] = ..., num_unknown_ids: _Optional[int] = ..., num_rows: _Optional[int] = ...) -> None: ...

class LookupDescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LookupDescription(_message.Message):
    __slots__ = ("versions", "max_ids_per_request", "current_version", "partly_held")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_IDS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTLY_HELD_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[LookupVersion]
    max_ids_per_request: int
    current_version: str
    partly_held: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, versions: _Optional[_Iterable[_Union[LookupVersion, _Mapping]]] = ..., max_ids_per_request: _Optional[int] = ..., current_version: _Optional[str] = ..., partly_held: _Optional[_Iterable[str]] = ...) -> None: ...

class LookupVersion(_message.Message):
    __slots__ = ("version", "tables", "shard_index", "num_shards")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    version: str
    tables: _containers.RepeatedCompositeFieldContainer[TableDescription]
    shard_index: int
    num_shards: int
    def __init__(self, version: _Optional[str] = ..., tables: _Optional[_Iterable[_Union[TableDescription, _Mapping]]] = ..., shard_index: _Optional[int] = ..., num_shards: _Optional[int] = ...) -> None: ...

class TableDescription(_message.Message):
    __slots__ = ("table", "feature", "id_type", "num_rows", "dim", "row_bytes", "precision")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    ID_TYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    table: str
    feature: str
    id_type: str
    num_rows: int
    dim: int
    row_bytes: int
    precision: str
    def __init__(self, table: _Optional[str] = ..., feature: _Optional[str] = ..., id_type: _Optional[str] = ..., num_rows: _Optional[int] = ..., dim: _Optional[int] = ..., row_bytes: _Optional[int] = ..., precision: _Optional[str] = ...) -> None: ...
