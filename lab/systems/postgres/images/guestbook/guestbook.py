"""A guest book: shows and takes entries, kept in PostgreSQL, and keeps a ledger in three trees.

Like the ledger of the WordPress system, an entry with a number is written in a fixed order: "begin" into
the volume, then the row into the database, then "done" into the writable layer. A capture of one instant
has every number of "done" in the rows, and every number of the rows in "begin".
"""
import html
import json
import os
import sys
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2

BEGIN = "/var/lib/guestbook/ledger.txt"
DONE = "/srv/done.txt"
lock = threading.Lock()


def connect():
    return psycopg2.connect(
        host=os.environ["POSTGRES_HOST"], dbname=os.environ["POSTGRES_DB"],
        user=os.environ["POSTGRES_USER"], password=os.environ["POSTGRES_PASSWORD"], connect_timeout=5)


def prepare():
    with connect() as db, db.cursor() as cur:
        cur.execute("CREATE TABLE IF NOT EXISTS entries (seq BIGINT PRIMARY KEY, name TEXT NOT NULL, body TEXT NOT NULL,"
                    " written TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp())")
        cur.execute("CREATE INDEX IF NOT EXISTS entries_body ON entries (body)")


def append(path, seq):
    with lock, open(path, "a", encoding="ascii") as f:
        f.write(f"{seq}\n")


def numbers(path):
    try:
        with open(path, encoding="ascii") as f:
            return [int(line) for line in f]
    except FileNotFoundError:
        return []


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, kind, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def guarded(self, work):
        try:
            work()
        except (psycopg2.Error, OSError) as err:
            self.answer(500, "text/plain", f"database: {err}")

    def do_GET(self):
        self.guarded(self.get)

    def do_POST(self):
        self.guarded(self.post)

    def get(self):
        db = connect()
        try:
            with db, db.cursor() as cur:
                if self.path == "/health":
                    cur.execute("SELECT 1")
                    self.answer(200, "text/plain", "ok")
                elif self.path == "/ledger":
                    cur.execute("SELECT seq FROM entries ORDER BY seq")
                    rows = [r[0] for r in cur.fetchall()]
                    self.answer(200, "application/json", json.dumps({"begin": numbers(BEGIN), "rows": rows, "done": numbers(DONE)}))
                else:
                    cur.execute("SELECT name, body FROM entries ORDER BY seq DESC LIMIT 20")
                    items = "".join(f"<li><b>{html.escape(n)}</b>: {html.escape(b)}</li>" for n, b in cur.fetchall())
                    title = html.escape(os.environ["GUESTBOOK_TITLE"])
                    self.answer(200, "text/html", f"<!DOCTYPE html><title>{title}</title><h1>{title}</h1><ul>{items}</ul>")
        finally:
            db.close()

    def post(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        seq = int(form.get("seq", ["0"])[0])
        if seq <= 0:
            self.answer(400, "text/plain", "bad request")
            return
        append(BEGIN, seq)
        db = connect()
        try:
            with db, db.cursor() as cur:
                cur.execute("INSERT INTO entries (seq, name, body) VALUES (%s, %s, %s)", (seq, f"guest {seq}", f"entry {seq} " + "wind and waves " * 20))
        finally:
            db.close()
        append(DONE, seq)
        self.answer(200, "text/plain", "ok")

    def log_message(self, *args):
        pass


if sys.argv[1] == "health":
    sys.exit(0 if urllib.request.urlopen("http://127.0.0.1/health", timeout=5).read() == b"ok" else 1)
prepare()
ThreadingHTTPServer(("", 80), Handler).serve_forever()
