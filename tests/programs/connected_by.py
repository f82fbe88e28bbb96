# mypy: ignore-errors
"""Prints what a server answers: connected_by.py LIBRARY ADDRESS"""

from __future__ import annotations

import asyncio
import os
import sys

LIBRARY, ADDRESS = sys.argv[1:]
URL = f"http://{ADDRESS}:8000/page"


def by_requests() -> str:
    import requests

    return str(requests.get(URL, timeout=20).text)


def by_aiohttp() -> str:
    import aiohttp

    async def one(session: aiohttp.ClientSession) -> str:
        async with session.get(URL) as answer:
            return await answer.text()

    async def many() -> str:
        async with aiohttp.ClientSession() as session:
            return (await asyncio.gather(*(one(session) for _ in range(50))))[-1]

    return asyncio.run(many())


def by_grpcio() -> str:
    import grpc

    with grpc.insecure_channel(f"{ADDRESS}:50051") as channel:
        return str(channel.unary_unary("/test.Page/Say")(b"", timeout=20).decode())


def by_pyzmq() -> str:
    import zmq

    questions = zmq.Context().socket(zmq.REQ)
    questions.connect(f"tcp://{ADDRESS}:5555")
    questions.send(b"?")
    return str(questions.recv().decode()) if questions.poll(20000) else ""


def by_psycopg() -> str:
    import psycopg

    with psycopg.connect(host=ADDRESS, user="me", dbname="me", connect_timeout=20) as made:
        return "a page" if made.info.server_version == 150000 else ""


def by_redis() -> str:
    import redis

    return str(redis.Redis(ADDRESS, protocol=2).execute_command("ECHO", "a page").decode())


def by_boto3() -> str:
    import boto3

    os.environ.update(AWS_ACCESS_KEY_ID="me", AWS_SECRET_ACCESS_KEY="me")
    client = boto3.client("s3", endpoint_url=f"http://{ADDRESS}:8000", region_name="none")
    return str(client.list_buckets()["Buckets"][0]["Name"].replace("-", " "))


print(globals()[f"by_{LIBRARY}"](), flush=True)
