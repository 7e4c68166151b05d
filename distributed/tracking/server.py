"""Whether Weights & Biases' server can be reached and takes our key: asked once, before anything starts.

wandb would ask it on rank 0, for minutes, while all other ranks wait.
"""

import base64
import json
import os
import ssl
from collections.abc import Callable
from queue import Empty, Queue
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from allpairs.errors import UserError
from distributed.config import Config

TIMEOUT = 10.0
"""Seconds the server has to answer, the look-up of its name included."""


def settle(config: Config, say: Callable[[str], None] = lambda text: None, runs: str | None = None) -> Config:
    """Return `config` if its tracking can begin; offline, with a line to `say`, where `tracking.on_failure` allows it.

    `runs` says where the runs lie if it is more than one.

    Raises:
        UserError: `tracking.wandb=online`, and the server does not answer or refuses the key.
    """
    if config.tracking.wandb != "online":
        return config
    try:
        ask()
    except UserError as error:
        if config.tracking.on_failure == "stop":
            raise UserError(
                f"tracking.wandb=online: {error}; accepted too: tracking.wandb=offline, or tracking.on_failure=offline"
            ) from None
        later = f"python -m distributed.tracking sync {runs or config.run_dir} --upload"
        say(f"tracking.wandb=online: {error}; going on offline, `{later}` sends it")
        return config.model_copy(update={"tracking": config.tracking.model_copy(update={"wandb": "offline"})})
    return config


def ask() -> None:
    """Ask the server who we are.

    Raises:
        UserError: there is no key, the server refuses it, or it does not answer within `TIMEOUT` seconds.
    """
    url = _base_url()
    host = urlsplit(url).netloc.rpartition("@")[2]
    key = _api_key(url)
    if key is None and not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        raise UserError(f"there is no API key for {host}: `wandb login`, or export WANDB_API_KEY")
    answers: Queue[UserError | None] = Queue()

    def wait() -> None:
        try:
            _ask(url, host, key)
        except UserError as error:
            answers.put(error)
        else:
            answers.put(None)

    # In a thread: neither the look-up of a name nor an answer that trickles in heeds the socket's timeout.
    Thread(target=wait, daemon=True).start()
    try:
        error = answers.get(timeout=TIMEOUT)
    except Empty:
        error = UserError(f"{host} does not answer within {TIMEOUT:g} s")
    if error is not None:
        raise error


def _base_url() -> str:
    """Return the server that wandb would talk to: from its environment variable, its settings files, or its own."""
    from wandb.sdk.wandb_setup import singleton

    return os.environ.get("WANDB_BASE_URL") or str(singleton().settings.base_url)


def _api_key(url: str) -> tuple[str, str] | None:
    """Return the key that wandb would use for that server and where it was found; None without one."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import check_api_key, read_netrc_auth
    from wandb.sdk.wandb_setup import singleton

    try:
        found = [
            (os.environ.get("WANDB_API_KEY"), "WANDB_API_KEY"),
            (read_netrc_auth(host=url), "~/.netrc"),
            (singleton().settings.api_key, "wandb's settings"),
        ]
    except AuthenticationError as error:
        raise UserError(f"~/.netrc: {error}") from None
    for key, source in found:
        if key:
            if problem := check_api_key(key):
                raise UserError(f"{source}: {problem.rstrip('.')}")
            return key, source
    return None


def _ask(url: str, host: str, key: tuple[str, str] | None) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "allpairs"}
    if key is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key[0]}".encode()).decode()
    question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    refused = f"{host} refuses the API key in {key[1] if key else ''}: `wandb login --relogin`, or export another"
    try:
        request = Request(f"{url.rstrip('/')}/graphql", question, headers)
        with urlopen(request, timeout=TIMEOUT, context=_context()) as response:
            known = json.load(response)["data"]["viewer"] is not None
    except HTTPError as error:
        if error.code in (401, 403):
            raise UserError(refused) from None
        raise UserError(f"{host} answers {error.code} {error.reason}") from None
    except URLError as error:
        raise UserError(f"{host} does not answer ({error.reason})") from None
    except OSError as error:
        raise UserError(f"{host} does not answer ({error})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{host} answers, but not as W&B's server does") from None
    if key is not None and not known:
        raise UserError(refused)


def _context() -> ssl.SSLContext:
    from wandb.sdk.wandb_setup import singleton

    context = ssl.create_default_context()
    if singleton().settings.insecure_disable_ssl:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
