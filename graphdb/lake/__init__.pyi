from .address import open_table as open_table
from .condition import Condition as Condition
from .database import DatabaseQuery as DatabaseQuery
from .delta import DeltaTable as DeltaTable
from .iceberg import IcebergTable as IcebergTable
from .parquet import ParquetTable as ParquetTable
from .table import LakeTable as LakeTable
from .table import Piece as Piece
