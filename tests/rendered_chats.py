"""The known play as messengers export it, in the languages of several phones and machines."""

import email.message
import email.policy
import html
import io
import json
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.header import Header
from email.utils import format_datetime

from known_play import Said

ARABIC_DIGITS = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
When = Callable[[datetime], str]


def _half(when: datetime, am: str = "AM", pm: str = "PM") -> tuple[int, str]:
    return (when.hour - 1) % 12 + 1, am if when.hour < 12 else pm


def _american(t: datetime, seconds: str = "", space: str = "\u202f") -> str:
    hour, half = _half(t)
    return f"{t.month}/{t.day}/{t:%y}, {hour}:{t:%M}{seconds}{space}{half}"


def _arabic(t: datetime, seconds: str = "") -> str:
    hour, half = _half(t, "ص", "م")
    date = f"{t.day}\u200f/{t.month}\u200f/{t.year}، {hour}:{t:%M}{seconds} {half}"
    return date.translate(ARABIC_DIGITS)


ANDROID: dict[str, tuple[When, str, str]] = {
    "en-US": (
        _american,
        "Messages and calls are end-to-end encrypted. No one outside of this chat, not even "
        "WhatsApp, can read or listen to them. Tap to learn more.",
        "<Media omitted>",
    ),
    "de-DE": (
        lambda t: f"{t:%d.%m.%y, %H:%M}",
        "Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt. Niemand außerhalb dieses Chats "
        "kann sie lesen oder anhören, nicht einmal WhatsApp. Tippe, um mehr zu erfahren.",
        "<Medien ausgeschlossen>",
    ),
    "pt-BR": (
        lambda t: f"{t:%d/%m/%Y %H:%M}",
        "As mensagens e as chamadas são protegidas com a criptografia de ponta a ponta e ficam "
        "somente entre você e os participantes desta conversa.",
        "<Mídia oculta>",
    ),
    "fr-FR": (
        lambda t: f"{t:%d/%m/%Y, %H:%M}",
        "Les messages et les appels sont chiffrés de bout en bout. Aucun tiers, pas même "
        "WhatsApp, ne peut les lire ou les écouter.",
        "<Médias omis>",
    ),
    "ja-JP": (
        lambda t: f"{t:%Y/%m/%d %H:%M}",
        "メッセージと通話はエンドツーエンドで暗号化されています。",
        "<メディアなし>",
    ),
    "ar-EG": (
        _arabic,
        "الرسائل والمكالمات مشفرة تمامًا بين الطرفين.",
        "<تم استبعاد الوسائط>",
    ),
}  # fmt: skip
IPHONE: dict[str, When] = {
    "en-US": lambda t: _american(t, f":{t:%S}"),
    "de-DE": lambda t: f"{t:%d.%m.%y, %H:%M:%S}",
    "pt-BR": lambda t: f"{t:%d/%m/%Y, %H:%M:%S}",
    "fr-FR": lambda t: f"{t:%d/%m/%Y à %H:%M:%S}",
    "ja-JP": lambda t: f"{t:%Y/%m/%d %H:%M:%S}",
    "ar-EG": lambda t: _arabic(t, f":{t:%S}"),
}


def android(said: list[Said], locale: str) -> str:
    """Return WhatsApp's export from Android, with a notice, and media now and then."""
    head, notice, media = ANDROID[locale]
    lines = [f"{head(said[0].when)} - {notice}\n"]
    for number, s in enumerate(said):
        lines.append(f"{head(s.when)} - {s.name}: {s.text}\n")
        if number % 9 == 4:
            lines.append(f"{head(s.when)} - {s.name}: {media}\n")
    return "".join(lines)


def iphone(said: list[Said], locale: str) -> str:
    """Return WhatsApp's export from an iPhone: CRLF between messages, LF within them."""
    head = IPHONE[locale]
    notice = "\u200eMessages and calls are end-to-end encrypted."
    lines = [f"[{head(said[0].when)}] The play: {notice}\r\n"]
    for number, s in enumerate(said):
        lines.append(f"[{head(s.when)}] {s.name}: {s.text}\r\n")
        if number % 9 == 4:
            lines.append(
                f"\u200e[{head(s.when)}] {s.name}: \u200e<attached: {number:08}-PHOTO-2023-12-24-"
                "10-15-00.jpg>\r\n"
            )
    return "".join(lines)


# --------------------------------------------------------------------------------------------------
# Telegram


def telegram_json(said: list[Said], indent: int | None = 1) -> str:
    """Return the `result.json` of Telegram Desktop; now and then a text in parts, and a join."""
    people = {name: f"user{n + 101}" for n, name in enumerate({s.name: 0 for s in said})}
    rows: list[dict[str, object]] = [
        {
            "id": 1, "type": "service", "date": "2023-12-21T09:00:00",
            "date_unixtime": "1703149200", "actor": said[0].name,
            "actor_id": people[said[0].name], "action": "create_group", "title": "The play",
            "members": list(people), "text": "", "text_entities": [],
        }
    ]  # fmt: skip
    for number, s in enumerate(said, 2):
        first, *others = s.text.split(" ", 1)
        entities = [{"type": "bold", "text": first}, {"type": "plain", "text": "".join(others)}]
        in_parts = [{"type": "bold", "text": first + " "}, *others] if others else s.text
        rows.append(
            {
                "id": number, "type": "message", "date": f"{s.when:%Y-%m-%dT%H:%M:%S}",
                "date_unixtime": str(int(s.when.timestamp())), "from": s.name,
                "from_id": people[s.name], "text": in_parts if number % 5 == 0 else s.text,
                "text_entities": entities,
            }
        )  # fmt: skip
    chat = {"name": "The play", "type": "private_group", "id": 4242, "messages": rows}
    return json.dumps(chat, ensure_ascii=False, indent=indent)


def telegram_html(said: list[Said], zone: str = "UTC+01:00") -> str:
    """Return a page of Telegram Desktop; who goes on speaking is not named again."""
    parts = [
        "<!DOCTYPE html>\n<html>\n\n <head>\n\n  <meta charset=\"utf-8\"/>\n<title>Exported Data"
        "</title>\n  <script src=\"js/script.js\">\n\n  </script>\n </head>"
        "\n\n <body onload=\"CheckLocation();\">\n\n  <div class=\"page_wrap\">\n\n   <div class=\""
        "page_header\">\n    <div class=\"content\">\n     <div class=\"text bold\">\nThe play\n"
        "     </div>\n    </div>\n   </div>\n\n   <div class=\"page_body chat_page\">\n\n    <div "
        "class=\"history\">\n\n     <div class=\"message service\" id=\"message-1\">\n\n      <div "
        "class=\"body details\">\n21 December 2023\n      </div>\n     </div>\n\n"
    ]  # fmt: skip
    last = None
    for number, s in enumerate(said, 2):
        joined = " joined" if s.name == last else ""
        name = "" if joined else f'<div class="from_name">\n{html.escape(s.name)} \n       </div>\n'
        text = "<br>".join(html.escape(line) for line in s.lines)
        parts.append(
            f'     <div class="message default clearfix{joined}" id="message{number}">\n\n      '
            f'<div class="body">\n\n       <div class="pull_right date details" title="'
            f'{s.when:%d.%m.%Y %H:%M:%S} {zone}">\n{s.when:%H:%M}\n       </div>\n\n       {name}\n'
            f'       <div class="text">\n{text}\n       </div>\n\n      </div>\n\n     </div>\n\n'
        )
        last = s.name
    return "".join(parts) + "    </div>\n\n   </div>\n\n  </div>\n\n </body>\n\n</html>\n"


# --------------------------------------------------------------------------------------------------
# Discord, Slack, Signal


def discord_json(said: list[Said], offset: int = 0) -> str:
    """Return DiscordChatExporter's JSON; offset: of the clock of the machine, in hours."""
    zone = timezone(timedelta(hours=offset))
    rows = [
        {
            "id": str(10**18 + n), "type": "Reply" if n % 4 == 3 else "Default",
            "timestamp": s.when.astimezone(zone).isoformat(timespec="milliseconds"),
            "timestampEdited": None, "callEndedTimestamp": None, "isPinned": False,
            "content": s.text,
            "author": {
                "id": str(hash_of(s.name)), "name": f"user{hash_of(s.name)}",
                "discriminator": "0000", "nickname": s.name, "color": None, "isBot": False,
                "roles": [], "avatarUrl": "avatar.png",
            },
            "attachments": [], "embeds": [], "stickers": [], "reactions": [], "mentions": [],
        }
        for n, s in enumerate(said)
    ]  # fmt: skip
    channel = {
        "guild": {"id": "1", "name": "Players", "iconUrl": "icon.png"},
        "channel": {"id": "2", "type": "GuildTextChat", "name": "stage", "topic": None},
        "dateRange": {"after": None, "before": None},
        "exportedAt": "2024-01-02T10:00:00.0000000+00:00",
        "messages": rows,
        "messageCount": len(rows),
    }
    return json.dumps(channel, ensure_ascii=False, indent=2)


def hash_of(name: str) -> int:
    return sum(map(ord, name))


DISCORD: dict[str, When] = {
    "en-US": lambda t: _american(t, space=" ").replace(", ", " ").replace(f"/{t:%y} ", f"/{t:%Y} "),
    "de-DE": lambda t: f"{t:%d.%m.%Y %H:%M}",
    "en-GB": lambda t: f"{t:%d/%m/%Y %H:%M}",
    "sv-SE": lambda t: f"{t:%Y-%m-%d %H:%M}",
    "ja-JP": lambda t: f"{t:%Y/%m/%d} {t.hour}:{t:%M}",
    "ru-RU": lambda t: f"{t:%d.%m.%Y %H:%M}",
}


def discord_text(said: list[Said], locale: str) -> str:
    """Return DiscordChatExporter's plain text."""
    rule = "=" * 62
    head = f"{rule}\nGuild: Players\nChannel: Text / stage\nTopic: The play\n{rule}\n\n"
    texts = (f"[{DISCORD[locale](s.when)}] {s.name}\n{s.text}\n\n" for s in said)
    return f"{head}{''.join(texts)}\n{rule}\nExported {len(said)} message(s)\n{rule}\n"


def slack_zip(said: list[Said]) -> bytes:
    """Return a workspace of Slack: a file for each day in the folder of its channel."""
    ids = {name: f"U0{n:07}AB" for n, name in enumerate({s.name: 0 for s in said})}
    users = [
        {
            "id": ids[name], "team_id": "T1", "name": f"u{n}", "deleted": False,
            "real_name": name, "profile": {"real_name": name, "display_name": name},
        }
        for n, name in enumerate(ids)
    ]  # fmt: skip
    channel = {
        "id": "C024BE91L", "name": "stage", "created": 1449252889, "creator": ids[said[0].name],
        "is_archived": False, "is_general": True, "members": list(ids.values()),
        "topic": {"value": "The play", "creator": "", "last_set": 0},
    }  # fmt: skip
    added = {
        "user_id": ids[said[0].name], "user_name": "u0", "date": "1449252889",
        "change_type": "added", "app_type": "Calendar", "app_id": "A0123", "scope": "bot,commands",
    }  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("channels.json", json.dumps([channel], indent=4))
        archive.writestr("users.json", json.dumps(users, indent=4))
        archive.writestr("integration_logs.json", json.dumps([added], indent=4))
        for day in {f"{s.when:%Y-%m-%d}": 0 for s in said}:
            rows = [
                {
                    "client_msg_id": f"m-{n}", "type": "message", "user": ids[s.name],
                    "text": html.escape(s.text, quote=False), "ts": f"{s.when.timestamp():.6f}",
                    "team": "T1",
                }
                for n, s in enumerate(said)
                if f"{s.when:%Y-%m-%d}" == day
            ]  # fmt: skip
            joined = {
                "type": "message", "subtype": "channel_join", "user": rows[0]["user"],
                "text": f"<@{rows[0]['user']}> has joined the channel", "ts": "1703149200.000100",
            }  # fmt: skip
            archive.writestr(f"stage/{day}.json", json.dumps([joined, *rows], indent=4))
    return out.getvalue()


def signal_markdown(said: list[Said]) -> str:
    """Return what signal-export writes."""
    return "".join(f"[{s.when:%Y-%m-%d, %H:%M}] {s.name}: {s.text}  \n\n" for s in said)


def signal_backup(said: list[Said]) -> str:
    """Return Signal's own export: recipients, then messages, an object a line."""
    rows: list[dict[str, object]] = [{"version": "1", "backupTimeMs": "1704186000000"}]
    ids = {name: str(n + 10) for n, name in enumerate({s.name: 0 for s in said})}
    for name, number in ids.items():
        contact = {"profileGivenName": name, "profileSharing": True}
        rows.append({"recipient": {"id": number, "contact": contact}})
    rows.append({"chat": {"id": "1", "recipientId": "10"}})
    rows += [
        {
            "chatItem": {
                "chatId": "1", "authorId": ids[s.name],
                "dateSent": str(int(s.when.timestamp() * 1000)), "incoming": {"read": True},
                "standardMessage": {"text": {"body": s.text}},
            }
        }
        for s in said
    ]  # fmt: skip
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --------------------------------------------------------------------------------------------------
# IRC and mail, where a message is one line, or has a quotation


def nick(name: str) -> str:
    return name.replace(" ", "_").replace("'", "`")


def irssi(said: list[Said]) -> str:
    lines = [f"--- Log opened {said[0].when:%a %b %d %H:%M:%S %Y}"]
    day = said[0].when.date()
    for s in said:
        if s.when.date() != day:
            day = s.when.date()
            lines.append(f"--- Day changed {s.when:%a %b %d %Y}")
        lines += [f"{s.when:%H:%M} < {nick(s.name)}> {line}" for line in s.lines]
        lines.append(f"{s.when:%H:%M} -!- {nick(s.name)} [~x@host.example] has joined #stage")
    return "\n".join([*lines, "--- Log closed Sat Dec 30 10:00:00 2023", ""])


def weechat(said: list[Said]) -> str:
    return "".join(
        f"{s.when:%Y-%m-%d %H:%M:%S}\t@{nick(s.name)}\t{line}\n" for s in said for line in s.lines
    )


def znc(said: list[Said]) -> str:
    return "".join(f"[{s.when:%H:%M:%S}] <{nick(s.name)}> {ln}\n" for s in said for ln in s.lines)


def hexchat(said: list[Said]) -> str:
    lines = [f"**** BEGIN LOGGING AT {said[0].when:%a %b %d %H:%M:%S %Y}", ""]
    lines += [f"{s.when:%b %d %H:%M:%S} <{nick(s.name)}>\t{line}" for s in said for line in s.lines]
    return "\n".join([*lines, "**** ENDING LOGGING AT Sat Dec 30 10:00:00 2023", ""])


def mbox(said: list[Said]) -> bytes:
    """Return an mbox (RFC 4155) with a thread for each scene; answers quote what they answer."""
    out = b""
    last: Said | None = None
    for number, s in enumerate(said):
        mail = email.message.EmailMessage(policy=email.policy.SMTP)
        answers = last is not None and last.scene == s.scene
        mail["From"] = Header(s.name, "utf-8").encode() + " <someone@example.org>"
        mail["To"] = "players@example.org"
        mail["Date"] = format_datetime(s.when)
        mail["Subject"] = f"{'Re: ' if answers else ''}Scene {s.scene}"
        mail["Message-ID"] = f"<{number}@example.org>"
        text = s.text + "\n"
        if last is not None and answers:
            mail["In-Reply-To"] = f"<{number - 1}@example.org>"
            quoted = "".join(f"> {line}\n" for line in last.lines)
            text += f"\nOn {last.when:%a, %d %b %Y at %H:%M}, {last.name} wrote:\n{quoted}"
        mail.set_content(text, cte=("quoted-printable", "base64", "8bit")[number % 3])
        if number % 7 == 3:
            mail.add_alternative(f"<p>{html.escape(s.text)}</p>", subtype="html")
        stamp = f"{s.when:%a %b %d %H:%M:%S %Y}"
        content = mail.as_bytes().replace(b"\r\n", b"\n").replace(b"\nFrom ", b"\n>From ")
        out += f"From someone@example.org {stamp}\n".encode() + content + b"\n"
        last = s
    return out
