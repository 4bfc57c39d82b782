"""A Spark frame: a new column beside its texts, from an engine in each of Spark's Python workers.

python examples/spark_job.py my-artifact tickets.parquet labelled/
"""

from __future__ import annotations

import sys

from pyspark.sql import SparkSession

from tfc.runtime.spark import prediction_udf


def main(artifact: str, source: str, target: str) -> None:
    """Read Parquet files, write others."""
    spark = SparkSession.builder.appName("labels").getOrCreate()
    predict = prediction_udf(artifact)
    frame = spark.read.parquet(source)
    frame.withColumn("prediction", predict("text")).write.parquet(target)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
