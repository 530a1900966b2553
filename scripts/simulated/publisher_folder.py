"""Publisher with a folder, and the web server that serves the folder."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from eir.lists.sources.folder_writer import publish_into

from .releases import public
from .web_folder import Web

NAME = "stolen"
ROWS = [f"001010060000{n:02}" for n in range(60)]


class Register:
    """A publisher, and the web server with its folder."""

    def __init__(self, folder, key, *, context=None, **how):
        self.folder, self.key, self.serial = folder / "www", key, 0
        self.folder.mkdir(parents=True)
        self.signers = folder / "signers"
        self.signers.write_text(f"agency {public(key)}")
        self.web = Web(self.folder, context=context, **how)

    def publish(self, full=None, *, added=(), ahead_s=0, key=None, **how):
        now = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=ahead_s)
        file = self.folder.parent / ("x.csv" if full is not None else "x-added.csv")
        file.write_text("imei\n" + "".join(f"{row}\n" for row in (full if full is not None else added)))
        self.serial += 1
        given = {
            "list_name": NAME,
            "serial": self.serial,
            "base": None if full is not None else self.serial - 1,
            "key": key or self.key,
        }
        given |= {"issued": now, "expires": now + timedelta(days=9)} | how
        with ThreadPoolExecutor(1) as aside:  # the caller may have a loop of its own
            return aside.submit(publish_into, self.folder, [file], **given).result()
