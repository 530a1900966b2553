"""Two or three examples for the help of each command: words of the command → what it does, and the line that is typed."""

PHONE, SIM = "001010010000014", "001010123456789"
BLOCKS, RELEASE = "blocked", "stolen-national-2.manifest.json"

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "init": (
        ("a node whose peer is one MME", "eir init --realm epc.mnc001.mcc001.3gppnetwork.org --peer mme1@192.0.2.10"),
        ("with the key of the agency that publishes the list", "eir init /etc/eir --key agency.pub --list stolen-national"),
    ),
    "serve": (
        ("run a node in this terminal", "eir serve -c config/eir.yaml"),
        ("take over the file whenever it changes", "eir serve --reload-on-change"),
    ),
    "status": (
        ("for people, and for Nagios", "eir status"),
        ("for scripts", "eir status --json"),
    ),
    "peers": (
        ("who is connected, and who is awaited", "eir peers"),
        ("for scripts", "eir peers --json"),
    ),
    "reload": (
        ("look at the changed file first, then take it over", "eir config && eir reload"),
        ("of a node with another file", "eir reload -c /etc/eir/eir.yaml"),
    ),
    "drain": (
        ("end the node without losing a check", "eir drain"),
        ("of a node with another file", "eir drain -c /etc/eir/eir.yaml"),
    ),
    "config": (
        ("is the file right, and what is in force by it?", "eir config -c /etc/eir/eir.yaml"),
        ("every key, as a page", "eir config --reference"),
    ),
    "check": (
        ("what is this phone answered, and why?", f"eir check {PHONE}"),
        ("in this SIM's hands, asked by this MME", f"eir check {PHONE} --imsi {SIM} --origin-host mme1.example"),
        ("and what goes over the wire", f"eir check {PHONE} --protocol s13"),
    ),
    "why": (
        ("what was this phone answered last?", f"eir why {PHONE}"),
        ("that morning, with this SIM", f"eir why {PHONE} --imsi {SIM} --at 2026-11-20T06:00:00Z"),
    ),
    "trace": (
        ("a customer's checks, as they happen", f'eir trace --imsi {SIM} --reason "complaint 17"'),
        ("those of a phone for an hour, with a capture", f'eir trace --imei {PHONE} --for 1h --pcap phone.pcap --reason "complaint 17"'),
    ),
    "load": (
        ("what would come and go?", f"eir load --dry-run {RELEASE}"),
        ("put it in force", f"eir load {RELEASE}"),
        ("the same where much goes on purpose", f"eir load --force {RELEASE}"),
    ),
    "inbox": (
        ("load what has arrived, and say what waits", "eir inbox"),
        ("for scripts", "eir inbox --json"),
    ),
    "pull": (
        ("of every list that has a source", "eir pull"),
        ("of one, and once more what was refused", "eir pull stolen-national --force"),
    ),
    "acknowledge": (
        ("tell the publishers what is in force here", "eir acknowledge"),
        ("as files, to be sent by mail", "eir acknowledge stolen-national --out acknowledgements"),
        ("the line by which a publisher knows this node", "eir acknowledge --key"),
    ),
    "acknowledged": (
        ("who has the newest release, and who is late?", "eir acknowledged /srv/www/stolen-national"),
        ("where nodes have a day", "eir acknowledged /srv/www/stolen-national --within 24h"),
    ),
    "show": (
        ("the first entries of a list", "eir show stolen-national -n 20"),
        ("does it name this phone?", f"eir show stolen-national {PHONE}"),
        ("all phones of a model that it names", "eir show stolen-national 00101001"),
    ),
    "export": (
        ("the list as a data file", "eir export stolen-national -o stolen.csv"),
        ("only the models that it names as a whole", "eir export stolen-national --only tac"),
    ),
    "history": (
        ("the last month of a list", "eir history stolen-national --since 30d"),
        ("was anything changed behind our back?", "eir history --verify"),
        ("for an auditor", "eir history --export record.jsonl"),
    ),
    "rollback": (
        ("what would be in force again?", "eir rollback stolen-national --dry-run"),
        ("undo the last release", "eir rollback stolen-national"),
        ("undo all after release 41", "eir rollback stolen-national --to 41"),
    ),
    "add": (
        ("block a phone", f'eir add {BLOCKS} {PHONE} --reason "stolen, case 17"'),
        ("for two weeks", f'eir add {BLOCKS} {PHONE} --until 14d --reason "case 17"'),
        ("a whole model", f'eir add {BLOCKS} 00101001 --tac --reason "never approved"'),
    ),
    "remove": (
        ("a phone was found again", f'eir remove {BLOCKS} {PHONE} --reason "found"'),
        ("how many phones would that free?", f'eir remove {BLOCKS} 00101001 --tac --dry-run --reason "approved"'),
    ),
    "publish": (
        ("a whole list", "eir publish --list stolen --serial 1 --expires 14d --key key stolen.csv"),
        ("what comes and goes since release 1",
         "eir publish --list stolen --serial 2 --base 1 --expires 14d --key key stolen-added.csv stolen-removed.csv"),
        ("into a folder that nodes pull from", "eir publish --list stolen --serial 3 --expires 14d --key key --to /srv/www/stolen stolen.csv"),
    ),
    "offer": (
        ("a release that two people have signed", f"eir offer {RELEASE} --to /srv/www/stolen-national --key key"),
        ("keep the way open for nodes that were away a month", f"eir offer {RELEASE} --to /srv/www/stolen-national --key key --keep 30d"),
    ),
    "probe": (
        ("as an MME", f"eir probe 192.0.2.1 {PHONE}"),
        ("as an AMF, over TLS", f"eir probe https://eir.example:7777 {PHONE} --ca ca.pem"),
        ("a hundred times, ten a second", f"eir probe 192.0.2.1 {PHONE} --count 100 --rate 10"),
    ),
    "audit": (
        ("does an EIR block what the release lists?", f"eir audit {RELEASE} 192.0.2.1 --at-least 99.9%"),
        ("by a capture, without asking", f"eir audit {RELEASE} --passive s13.pcap"),
        ("by what this node has on record", f"eir audit {RELEASE} --sightings --since 7d"),
    ),
    "seen": (
        ("when and with which SIMs was this phone there?", f"eir seen {PHONE}"),
        ("this SIM's last week", f"eir seen {SIM} --since 7d"),
    ),
    "completion": (
        ("for bash", "eir completion bash >~/.local/share/bash-completion/completions/eir"),
        ("for fish", "eir completion fish >~/.config/fish/completions/eir.fish"),
    ),
    "manual": (
        ("read it", "eir manual | man -l -"),
        ("install it", "eir manual >/usr/local/share/man/man1/eir.1"),
    ),
    "lists": (
        ("what is in force?", "eir lists"),
        ("what does the store hold, whatever the node says?", "eir lists --store --json"),
    ),
    "lists reset-serial": (
        ("a release came as number 20261129 by mistake, after 41", 'eir lists reset-serial stolen-national --to 41 --reason "typo of the agency"'),
        ("what is next then", "eir load --dry-run stolen-national-42.manifest.json"),
    ),
    "peer disable": (
        ("before an MME is worked on", "eir peer disable mme1"),
        ("what it is called", "eir peers"),
    ),
    "peer enable": (
        ("when the work is done", "eir peer enable mme1"),
        ("is it back?", "eir peers"),
    ),
    "feed user": (
        ("a register's user, with a password that is made up", "eir feed user register1 >>feed.users"),
        ("with a password of its own", "eir feed user register1 --password-file password >>feed.users"),
    ),
    "sightings": (
        ("how much is on record?", "eir sightings"),
        ("for scripts", "eir sightings --json"),
    ),
    "sightings forget": (
        ("a subscriber wants to be forgotten", f"eir sightings forget --imsi {SIM}"),
        ("is nothing left?", f"eir seen {SIM}"),
    ),
    "sightings import": (
        ("the log of the EIR that was here before", "eir sightings import old-eir.csv"),
        ("for scripts", "eir sightings import old-eir.parquet --json"),
    ),
    "sightings export": (
        ("yesterday's checks, for the register", "eir sightings export --out checks.csv"),
        ("those of another day", "eir sightings export --day 2026-11-27 --operator example --out checks.csv"),
    ),
    "tamper report": (
        ("the likeliest of the last month", "eir tamper report"),
        ("as a page for the fraud desk", "eir tamper report --since 60d --html report.html"),
        ("as a page for the public", "eir tamper report --public yearly.html"),
    ),
    "tamper show": (
        ("what does a finding rest on?", f"eir tamper show {PHONE}"),
        ("as a page for the file", f"eir tamper show {PHONE} --html case-17.html"),
    ),
    "tamper confirm": (
        ("somebody held the phone in hand", f'eir tamper confirm {PHONE} --reason "seen at the customs office"'),
        ("what is known of it", f"eir tamper show {PHONE}"),
    ),
    "tamper clear": (
        ("it was an honest one", f'eir tamper clear {PHONE} --reason "a mast at the border"'),
        ("what is known of it", f"eir tamper show {PHONE}"),
    ),
    "tamper export": (
        ("rows that are nearly certain", "eir tamper export --out tampered.csv"),
        ("sign them as a release",
         "eir publish --list tampered --serial 1 --expires 14d --key key tampered.csv"),
    ),
}  # fmt: skip
WIDE = 74
"""Columns that a line of the help has for an example."""


def shown(words: str) -> str:
    """The examples of a command, as its help ends."""
    lines = ["Examples:"]
    for what, line in EXAMPLES[words]:
        lines += [f"  # {what}", *_folded(f"  {line}")]
    return "\b\n" + "\n".join(lines)


def _folded(line: str) -> list[str]:
    """A line that is too long goes on with its last option, after a backslash, as a shell reads it."""
    if len(line) <= WIDE:
        return [line]
    at = line.rindex(" -", 0, WIDE - 2)
    return [f"{line[:at]} \\", *_folded(f"      {line[at + 1 :]}")]
