/**
 * The demo chat. Each room is two channels: `room:<name>` keeps history and presence, `typing:<name>` keeps nothing and
 * carries what is only true for a moment: who is typing, and, where tokens do not say it, what a connection is called.
 *
 * With a token (`#token=…`) people are who the server says they are. Without one there is no `user`, so that the page
 * puts a name and an id of its own into the data. Everything from others reaches the page as text, never as markup.
 *
 * From top to bottom: what is remembered, people, `Room`, the conversation's view, the composer, the panels, the
 * connection. It starts at the end.
 */
import { Fanwire } from './fanwire.js';

const LONGEST_TEXT = 4000;
const KEPT_ENTRIES = 500;
const GROUP_MS = 5 * 60_000;
const TYPING_EVERY = 2500;
const TYPING_LASTS = 5000;
const HELLO_EVERY = 2000;
const START_ROOMS = ['lobby', 'ideas', 'random'];

const $ = (id) => document.getElementById(id);

/** An element with a class and children; strings become text. */
function element(tag, className = '', ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function button(text, className, onClick) {
  const made = element('button', className, text);
  made.type = 'button';
  made.addEventListener('click', onClick);
  return made;
}

const randomId = () =>
  [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, '0')).join('');

// ---- what is remembered ----

/** Values that survive a reload. Where storage is forbidden they live as long as the page. */
function remembered(storage, key, initial) {
  let value = initial;
  try {
    value = { ...initial, ...JSON.parse(storage()[key] ?? '{}') };
  } catch {
    // Forbidden, or somebody else's: start afresh.
  }
  const save = (changes) => {
    Object.assign(value, changes);
    try {
      storage()[key] = JSON.stringify(value);
    } catch {
      // Then it is forgotten with the page.
    }
  };
  return [value, save];
}

/** For this browser: rooms, what was read, looks. For this window: who one is, so that two windows are two people. */
const [settings, saveSettings] = remembered(() => localStorage, 'fanwire.chat', {
  rooms: START_ROOMS,
  read: {},
  theme: 'system',
  name: '',
});
const [me, saveMe] = remembered(() => sessionStorage, 'fanwire.me', { id: randomId(), name: '', token: '', app: '' });

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  if (address.has('token') || address.has('app')) {
    saveMe({ token: address.get('token') ?? '', app: address.get('app') ?? '' });
    address.delete('token'); // Neither into the history nor over somebody's shoulder.
    address.delete('app');
    history.replaceState(null, '', `${location.pathname}#${address}`);
  }
  return cleanRoomName(address.get('room') ?? '');
}

function cleanRoomName(text) {
  return text
    .normalize('NFC')
    .trim()
    .replace(/^#/, '')
    .replace(/[\s\p{Cc}]+/gu, '-')
    .slice(0, 60);
}

// ---- people ----

/** What connections are called, as they said themselves: only where no token says it. */
const introduced = new Map();

function introduce(connection, person) {
  if (typeof connection !== 'string' || typeof person.by !== 'string') return false;
  const before = introduced.get(connection);
  introduced.set(connection, { key: `by ${person.by}`, name: nameOf(person.name) });
  if (introduced.size > 2000) introduced.delete(introduced.keys().next().value);
  return before?.name !== introduced.get(connection).name && current !== null;
}

function nameOf(value, otherwise = 'Guest') {
  return typeof value === 'string' && value.trim() ? value.trim().slice(0, 60) : otherwise;
}

/** A member of a room as a person: several connections may be one. */
function personOf({ connection, user, info }) {
  if (user) return { key: `user ${user}`, name: nameOf(info?.name, user), own: user === client.user };
  if (connection === client.connection) return { key: `by ${me.id}`, name: me.name || 'You', own: true };
  const known = introduced.get(connection) ?? { key: `connection ${connection}`, name: 'Guest' };
  return { ...known, own: known.key === `by ${me.id}` };
}

/** Who wrote a message: the server's word where there is one, else the message's own. */
function authorOf({ from, data, tags }, members) {
  if (from?.user) {
    const info = members.find((member) => member.user === from.user)?.info;
    return {
      key: `user ${from.user}`,
      name: nameOf(info?.name ?? data?.name, from.user),
      own: from.user === client.user,
    };
  }
  if (typeof data?.by === 'string')
    return { key: `by ${data.by}`, name: nameOf(data.name), own: !client.user && data.by === me.id };
  return { key: 'elsewhere', name: nameOf(data?.name ?? tags?.name, 'From elsewhere'), own: false };
}

function avatar({ key, name }, id) {
  const letters = name.split(/\s+/u).map((word) => [...word][0] ?? '');
  const initials = (
    letters.length > 1 ? letters[0] + letters.at(-1) : [...name].slice(0, 2).join('')
  ).toLocaleUpperCase();
  let hash = 7;
  for (const char of key) hash = (hash * 31 + char.codePointAt(0)) % 9973;
  const made = element('span', `avatar hue-${hash % 10}`, initials);
  made.setAttribute('aria-hidden', 'true');
  if (id) made.id = id;
  return made;
}

/** Why something did not work, in plain words. */
function plainly(error) {
  const seconds = Math.ceil(error.retryAfter ?? 0);
  const words = {
    rate_limited: seconds ? `You are sending too fast; wait ${seconds} s.` : 'You are sending too fast.',
    too_large: 'This is too long for the server.',
    forbidden: 'You are not allowed to do that here.',
    unauthorized: 'The server wants to know who you are first.',
    token_expired: 'Your session has ended.',
    token_revoked: 'Your session was ended.',
    unknown_channel: 'The server has no such room.',
    limit_exceeded: 'Too much is waiting already.',
    unavailable: 'There was no connection in time.',
    timeout: 'No answer came; it may have arrived all the same.',
    connection_limit: 'The server is full.',
    unknown_app: 'The server does not know this app.',
    limits: 'The server found this page too busy.',
  };
  return words[error.code] ?? `It did not work: ${error.message}.`;
}

// ---- a room ----

const rooms = new Map();
let current = null;

class Room {
  unread = 0;
  typers = new Map();
  pending = new Map();
  scroll = null;
  firstOffset = Infinity;
  quietUntil = 0;
  helloAt = 0;
  typingAt = 0;
  refusal = '';

  constructor(name) {
    this.name = name;
    this.list = element('ol');
    this.subscription = client.subscribe(`room:${name}`, {
      last: 50,
      presence: true,
      onMessage: (message) => this.#onMessage(message),
      onSubscribed: (facts) => this.#onSubscribed(facts),
      onGap: (gap) => this.#onGap(gap),
      onMembers: () => this === current && showPeople(),
      onJoin: () => this.hello(false),
      onUnsubscribed: (error) => this.#onRefused(error),
    });
    this.moments = client.subscribe(`typing:${name}`, {
      onMessage: (message) => this.#onMoment(message),
      onSubscribed: () => this.hello(true),
    });
    this.#showEmpty();
  }

  leave() {
    this.subscription.unsubscribe();
    this.moments.unsubscribe();
  }

  get atBottom() {
    return this.scroll === null;
  }

  // What arrives.

  #onMessage(message) {
    const { data } = message;
    if (message.offset) this.firstOffset = Math.min(this.firstOffset, message.offset);
    const author = authorOf(message, this.subscription.members);
    let entry = author.own && this.pending.get(data?.nonce);
    this.typers.delete(author.key);
    if (introduce(message.from?.connection, data ?? {})) showPeople();
    if (entry) {
      this.pending.delete(data.nonce);
      entry.time = message.time;
      entry.state = 'sent';
      place(this, entry);
    } else {
      entry = this.add({ ...author, ...contentOf(data), time: message.time, state: 'sent' });
    }
    this.#countUnread(message, entry);
    if (this === current) showTyping();
  }

  #countUnread({ offset }, { own, name, node, text }) {
    const { epoch } = this.subscription.position ?? {};
    const read = settings.read[this.name];
    const old = read?.epoch === epoch && offset <= read?.offset;
    const history = this.#isHistory();
    if (!own && !history) announce(this, `${name}: ${text}`);
    if (this === current && (own || looking())) return this.markRead();
    // Whoever was never here has read all that was said before.
    if (own || old || (history && !read)) return;
    if (this.unread++ === 0) this.unreadFrom = node;
    showUnread();
  }

  /** Whether what arrives was said before: it comes at once after `subscribed`, without a pause in between. */
  #isHistory() {
    const now = performance.now();
    if (now >= this.quietUntil) return false;
    this.quietUntil = Math.max(this.quietUntil, now + 100);
    return true;
  }

  /** All that is shown has been seen. */
  markRead() {
    this.unread = 0;
    const { position } = this.subscription;
    if (position) saveSettings({ read: { ...settings.read, [this.name]: position } });
    showUnread();
  }

  #onSubscribed({ history }) {
    this.quietUntil = performance.now() + 200;
    this.refusal = '';
    if (history && !this.earlier) setTimeout(() => this.#offerEarlier(), 300);
    this.#showEmpty();
  }

  /** Something is missing and cannot be had any more: say so where it would have stood. */
  #onGap({ epoch, before }) {
    const lost = epoch !== before.epoch;
    this.remark(
      lost
        ? 'The server lost its history here. What stands above is only on this page.'
        : 'Some messages in between are no longer kept.',
    );
  }

  #onRefused(error) {
    if (error.code === 'closed') return;
    this.refusal = plainly(error);
    this.remark(`You cannot read this room. ${this.refusal}`);
    this.#showEmpty();
  }

  /** Who is here, oneself first; several connections of one person are one. */
  get people() {
    const people = new Map();
    for (const member of this.subscription.members) {
      const person = personOf(member);
      people.set(person.key, { ...person, windows: (people.get(person.key)?.windows ?? 0) + 1 });
    }
    const order = (a, b) => b.own - a.own || a.name.localeCompare(b.name);
    return [...people.values()].sort(order);
  }

  #onMoment({ event, data }) {
    if (typeof data !== 'object' || data === null) return;
    if (introduce(data.connection, data)) showPeople();
    if (event === 'hello' && data.ask) this.hello(false);
    if (event === 'typing') {
      const key = typeof data.user === 'string' ? `user ${data.user}` : `by ${data.by}`;
      if (data.on) this.typers.set(key, { name: nameOf(data.name), until: Date.now() + TYPING_LASTS });
      else this.typers.delete(key);
      if (this.typers.size > 50) this.typers.clear();
      if (this === current) showTyping();
    }
  }

  // What goes out.

  /** Tells the others what this connection is called; to newcomers not all at once, and not again and again. */
  hello(ask) {
    if (client.user || this.helloTimer || this.subscription.members.length > 50) return;
    const wait = ask ? 0 : Math.max(Math.random() * 600, this.helloAt + HELLO_EVERY - Date.now());
    this.helloTimer = setTimeout(() => {
      this.helloTimer = undefined;
      this.helloAt = Date.now();
      if (me.name) this.#moment('hello', { ask });
    }, wait);
  }

  typing(on) {
    if (on && Date.now() - this.typingAt < TYPING_EVERY) return;
    if (!on && this.typingAt === 0) return;
    const said = this.#moment('typing', { on });
    this.typingAt = on && said ? Date.now() : 0;
  }

  /** Of the moment: not repeated, not waited for, and nobody minds if it is lost. False where it cannot be said now. */
  #moment(event, facts) {
    if (client.state !== 'connected' || this.moments.state !== 'subscribed') return false;
    const data = { ...facts, by: me.id, name: ownName(), user: client.user, connection: client.connection };
    this.moments.publish(data, { event, echo: false, deadline: 3000 }).catch(() => {});
    return true;
  }

  send(text) {
    const nonce = randomId();
    const author = client.user
      ? { key: `user ${client.user}`, name: ownName() }
      : { key: `by ${me.id}`, name: me.name };
    const entry = this.add({ ...author, own: true, text, time: Date.now(), state: 'pending', nonce });
    this.pending.set(nonce, entry);
    this.#publish(entry);
  }

  /** The nonce is the idempotency key: however often it is sent, it is one message. */
  async #publish(entry) {
    const { nonce, text } = entry;
    try {
      await this.subscription.publish(
        { text, name: ownName(), by: me.id, nonce },
        { event: 'chat', key: nonce, deadline: 60_000 },
      );
      if (entry.state === 'pending') entry.state = 'sent';
    } catch (error) {
      if (entry.state === 'sent') return;
      entry.state = 'failed';
      entry.problem = plainly(error);
      announce(this, `Not sent: ${entry.problem}`);
    }
    dress(entry);
  }

  retry(entry) {
    entry.state = 'pending';
    dress(entry);
    place(this, entry);
    this.#publish(entry);
    $('text').focus();
  }

  discard(entry) {
    this.pending.delete(entry.nonce);
    const after = entry.node.nextElementSibling;
    entry.node.remove();
    if (after) regroup(after);
    $('text').focus();
  }

  // What is shown.

  add(entry) {
    this.blank?.remove();
    dress(entry);
    if (performance.now() >= this.quietUntil) entry.node.classList.add('fresh');
    place(this, entry);
    const entries = this.list.querySelectorAll('.entry');
    if (entries.length > KEPT_ENTRIES && this.atBottom) {
      entries[0].remove();
      this.firstOffset += 1;
    }
    return entry;
  }

  remark(text) {
    this.blank?.remove();
    keepingScroll(this, () => this.list.append(element('li', 'remark', text)));
  }

  #showEmpty() {
    this.blank?.remove();
    if (this.list.childElementCount > 0) return;
    const waiting = this.subscription.state !== 'subscribed';
    const title = element('strong', '', waiting ? 'One moment…' : 'Nobody has said anything yet');
    const text = waiting ? 'The room is being fetched.' : 'Say hello. Whoever opens this room later will see it too.';
    this.blank = element('li', 'empty', ...(waiting ? [] : [logo()]), title, text);
    this.list.append(this.blank);
  }

  #offerEarlier() {
    if (this.earlier || !(this.firstOffset > 1) || this.firstOffset === Infinity) return;
    this.earlier = element(
      'li',
      'earlier',
      button('Show earlier messages', 'quiet', () => this.#showEarlier()),
    );
    keepingScroll(this, () => this.list.prepend(this.earlier));
  }

  async #showEarlier() {
    const control = this.earlier.firstElementChild;
    control.disabled = true;
    try {
      const { messages } = await client.history(`room:${this.name}`, {
        before: this.firstOffset,
        limit: 50,
        reverse: true,
      });
      const height = $('log').scrollHeight;
      for (const message of messages) {
        const entry = {
          ...authorOf(message, this.subscription.members),
          ...contentOf(message.data),
          time: message.time,
          state: 'sent',
        };
        dress(entry);
        this.earlier.after(entry.node);
        regroup(entry.node);
      }
      $('log').scrollTop += $('log').scrollHeight - height;
      this.firstOffset = messages.at(-1)?.offset ?? 1;
      if (this.firstOffset > 1) return void (control.disabled = false);
      this.earlier.replaceChildren(element('span', 'remark', 'This is where it begins.'));
      $('log').focus({ preventScroll: true });
    } catch (error) {
      control.disabled = false;
      control.textContent = `${plainly(error)} Try again`;
    }
  }
}

const ownName = () => claims?.info?.name ?? claims?.sub ?? client.user ?? me.name;

/** Whatever was published here, as something to show: other programs may send any JSON. */
function contentOf(data) {
  if (typeof data === 'string') return { text: data };
  if (typeof data?.text === 'string') return { text: data.text };
  return { text: JSON.stringify(data, null, 2), code: true };
}

// ---- the conversation's view ----

/** Makes an entry's element, or brings it up to date. */
function dress(entry) {
  const { name, own, time, state, problem } = entry;
  if (!entry.node) {
    entry.node = element('li');
    entry.node.entry = entry;
    entry.words = element('div', wordsClass(entry));
    entry.words.append(...(entry.code ? [entry.text] : linked(entry.text)));
    entry.facts = element('div', 'facts');
    const face = avatar(entry);
    const who = element('div', `who ${face.classList[1]}`, element('bdi', '', own ? 'You' : name));
    entry.words.dir = 'auto';
    entry.words.append(entry.facts);
    entry.node.append(face, who, element('div', 'bubble', entry.words));
  }
  entry.node.classList.add('entry');
  for (const each of ['pending', 'failed']) entry.node.classList.toggle(each, state === each);
  entry.node.classList.toggle('own', own);
  const clock = element('time', '', new Date(time).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' }));
  clock.dateTime = new Date(time).toISOString();
  clock.dir = 'auto';
  clock.title = new Date(time).toLocaleString();
  const marks = { pending: ['◷', 'being sent'], failed: ['!', 'not sent'], sent: ['✓', 'sent'] };
  const [sign, meaning] = marks[state];
  const mark = element('span', '', sign);
  mark.setAttribute('role', 'img');
  mark.setAttribute('aria-label', meaning);
  entry.facts.replaceChildren(clock, ...(own ? [mark] : []));
  entry.trouble?.remove();
  if (state !== 'failed') return;
  const again = button('Try again', 'quiet', () => current.retry(entry));
  const drop = button('Discard', 'quiet', () => current.discard(entry));
  entry.trouble = element('div', 'trouble', element('span', '', problem), again, drop);
  entry.node.append(entry.trouble);
}

function wordsClass({ text, code }) {
  if (code) return 'words code';
  const pictures = /^(?:\p{Extended_Pictographic}|\p{Emoji_Modifier}|\p{Regional_Indicator}|[\u200d\ufe0f\s])+$/u;
  return pictures.test(text) && [...text].length <= 12 ? 'words jumbo' : 'words';
}

/** Text with its addresses as links. All of it is text nodes; only http and https become links. */
function linked(text) {
  return text.split(/(https?:\/\/[^\s<>"']*[^\s<>"'.,;:!?)\]}])/u).map((part, index) => {
    if (index % 2 === 0) return part;
    const link = element('a', '', part);
    link.href = part;
    link.target = '_blank';
    link.rel = 'noopener noreferrer';
    return link;
  });
}

/** Puts an entry where it belongs: what the server has in the server's order, what is not yet sent after it. */
function place(room, entry) {
  keepingScroll(room, () => {
    const after = entry.node.isConnected ? entry.node.nextElementSibling : null;
    const waiting = [...room.pending.values()].filter((other) => other !== entry && other.node.isConnected);
    const before = entry.state === 'sent' ? waiting[0]?.node : null;
    if (before) before.before(entry.node);
    else room.list.append(entry.node);
    for (const node of [entry.node, after]) if (node?.entry) regroup(node);
    dress(entry);
  });
}

/** Sets where a group of one person's messages starts and ends, and where a day does. */
function regroup(node) {
  const previous = node.previousElementSibling;
  const next = node.nextElementSibling;
  const day = (each) => new Date(each.time).toDateString();
  const newDay = !previous?.entry || day(previous.entry) !== day(node.entry);
  const line = node.querySelector('.day');
  if (newDay && !line) node.prepend(element('div', 'line day', dayName(node.entry.time)));
  if (!newDay) line?.remove();
  const joins = (a, b) =>
    a?.entry &&
    b?.entry &&
    a.entry.key === b.entry.key &&
    a.entry.own === b.entry.own &&
    b.entry.time - a.entry.time < GROUP_MS &&
    day(a.entry) === day(b.entry) &&
    !b.querySelector('.unread-line');
  node.classList.toggle('first', !joins(previous, node));
  node.classList.toggle('last', !joins(node, next));
  previous?.classList.toggle('last', !joins(previous, node));
  next?.classList.toggle('first', !joins(node, next));
}

function dayName(time) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(time).setHours(0, 0, 0, 0)) / 86_400_000);
  if (days === 0 || days === 1) return days ? 'Yesterday' : 'Today';
  return new Date(time).toLocaleDateString([], {
    weekday: 'long',
    day: 'numeric',
    month: 'long',
    year: days > 300 ? 'numeric' : undefined,
  });
}

/** Changes the list so that who reads its end stays there, and who reads further up is not moved. */
function keepingScroll(room, change) {
  const { atBottom } = room;
  change();
  if (room === current && atBottom) $('log').scrollTop = $('log').scrollHeight;
}

/** Whether what arrives in the current room is being looked at. */
function looking() {
  return document.visibilityState === 'visible' && document.hasFocus() && current?.atBottom && !$('name-dialog').open;
}

function onScroll() {
  const log = $('log');
  const fromBottom = log.scrollHeight - log.scrollTop - log.clientHeight;
  current.scroll = fromBottom < 48 ? null : log.scrollTop;
  if (current.unread && looking()) current.markRead();
  showUnread();
}

function toBottom() {
  current.scroll = null;
  $('log').scrollTop = $('log').scrollHeight;
  current.markRead();
  $('text').focus();
}

const spoken = [];

/** Says it to who listens rather than looks: a moment later, so that many at once become one sentence. */
function announce(room, text) {
  spoken.push([room, text]);
  if (spoken.length > 1) return;
  setTimeout(() => {
    const all = spoken.splice(0);
    const [last, words] = all.at(-1);
    const where = last === current ? '' : ` in ${last.name}`;
    $('announce').textContent =
      all.length === 1
        ? `${words.slice(0, 300)}${where}`
        : `${all.length} new messages${where}, the last: ${words.slice(0, 200)}`;
  }, 600);
}

function openRoom(name) {
  if (!rooms.has(name)) {
    rooms.set(name, new Room(name));
    saveSettings({ rooms: [...rooms.keys()] });
  }
  current?.typing(false);
  current?.list.querySelector('.unread-line')?.remove();
  current = rooms.get(name);
  $('room-name').textContent = name;
  $('log').setAttribute('aria-label', `Messages in ${name}`);
  $('text').placeholder = `Write to ${name}`;
  $('log').replaceChildren(current.list);
  showRooms();
  showPeople();
  showTyping();
  showCommand();
  $('log').scrollTop = current.scroll ?? $('log').scrollHeight;
  if (current.unread) showUnreadLine();
  onScroll();
}

/** Draws the line above the first unread message, and begins reading there. */
function showUnreadLine() {
  const node = current.unreadFrom;
  if (!node?.isConnected) return;
  node.prepend(element('div', 'line unread-line', 'New'));
  regroup(node);
  const above = node.offsetTop - $('log').clientHeight * 0.3;
  if (above < $('log').scrollTop) $('log').scrollTop = above;
}

function leaveRoom(name) {
  const names = [...rooms.keys()];
  const next = names[names.indexOf(name) + 1] ?? names[names.indexOf(name) - 1];
  rooms.get(name).leave();
  rooms.delete(name);
  saveSettings({ rooms: [...rooms.keys()] });
  if (current.name === name) goTo(next);
  else showRooms();
  $('rooms').querySelector('[aria-current]')?.focus();
}

function goTo(name) {
  const hash = `#${new URLSearchParams({ room: name })}`;
  if (location.hash === hash) openRoom(name);
  else location.hash = hash;
}

function showRooms() {
  const items = [...rooms.values()].map((room) => {
    const link = element('a', '', mute('#', 'hash'), element('bdi', '', room.name));
    link.href = `#${new URLSearchParams({ room: room.name })}`;
    if (room === current) link.setAttribute('aria-current', 'page');
    const badge = element('span', 'badge');
    badge.hidden = true;
    link.append(badge);
    const item = element('li', 'room', link);
    if (room !== current && rooms.size > 1 && !START_ROOMS.includes(room.name)) {
      const close = button('', 'icon close', () => leaveRoom(room.name));
      close.append(icon('m5 5 10 10M15 5 5 15'));
      close.setAttribute('aria-label', `Leave ${room.name}`);
      item.append(close);
    }
    room.item = item;
    room.badge = badge;
    return item;
  });
  $('rooms').replaceChildren(...items);
  showUnread();
}

/** Unread marks: at the rooms, on the phone's menu button, in the title, and the way down to new messages. */
function showUnread() {
  let total = 0;
  for (const room of rooms.values()) {
    total += room.unread;
    if (!room.badge) continue;
    room.badge.hidden = room.unread === 0;
    room.badge.replaceChildren(room.unread > 99 ? '99+' : String(room.unread), hiddenText(' unread'));
    room.item.classList.toggle('unread', room.unread > 0);
  }
  document.title = `${total ? `(${total}) ` : ''}${current ? `${current.name} · ` : ''}Fanwire`;
  const elsewhere = [...rooms.values()].some((room) => room !== current && room.unread);
  $('rooms-unread').hidden = !elsewhere;
  const { unread = 0, atBottom = true } = current ?? {};
  $('pill').hidden = atBottom;
  $('pill').textContent = unread ? `${unread} new ${unread === 1 ? 'message' : 'messages'} ↓` : 'To the newest ↓';
}

function showPeople() {
  const { people } = current;
  for (const id of ['people-number', 'people-number-2']) $(id).textContent = people.length;
  $('people').replaceChildren(
    ...people.map((person) => {
      const note = [person.own && 'you', person.windows > 1 && `${person.windows} windows`].filter(Boolean).join(', ');
      const name = element('span', 'name', element('bdi', '', person.name));
      return element('li', '', avatar(person), name, element('span', 'note', note));
    }),
  );
}

let typingTimer;

function showTyping() {
  const now = Date.now();
  for (const [key, { until }] of current.typers) if (until <= now) current.typers.delete(key);
  const names = [...current.typers.values()].map(({ name }) => `\u2068${name}\u2069`); // Isolated: a name may run the other way.
  const words =
    ['', `${names[0]} is typing`, `${names[0]} and ${names[1]} are typing`][names.length] ??
    `${names.length} people are typing`;
  $('typing').classList.toggle('on', names.length > 0);
  $('typing-text').textContent = words;
  clearTimeout(typingTimer);
  if (names.length) typingTimer = setTimeout(showTyping, 1000);
}

function showCommand() {
  const quoted = JSON.stringify({ channel: `room:${current.name}`, data: 'hello from a terminal' }).replaceAll(
    "'",
    "'\\''",
  );
  const key = me.token ? " \\\n  -H 'Authorization: Bearer API-KEY'" : '';
  $('curl').textContent =
    `curl ${location.origin}/v1/publish \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
}

const hiddenText = (text) => element('span', 'hidden', text);

function mute(text, className) {
  const made = element('span', className, text);
  made.setAttribute('aria-hidden', 'true');
  return made;
}

function icon(path) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 20 20');
  svg.setAttribute('aria-hidden', 'true');
  const drawn = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  drawn.setAttribute('d', path);
  svg.append(drawn);
  return svg;
}

const logo = () => document.querySelector('.brand .logo').cloneNode(true);

// ---- the composer ----

function onText() {
  const text = $('text');
  text.style.height = 'auto';
  text.style.height = `${text.scrollHeight}px`;
  const over = [...text.value].length - LONGEST_TEXT;
  $('problem').textContent = over > 0 ? `${over} ${over === 1 ? 'character' : 'characters'} too long.` : '';
  text.setAttribute('aria-invalid', String(over > 0));
  document.querySelector('.send').disabled = over > 0 || text.value.trim() === '';
}

function onSend(event) {
  event.preventDefault();
  const text = $('text').value.trim();
  if (text === '' || [...text].length > LONGEST_TEXT) return;
  if (!ownName()) return askName();
  $('text').value = '';
  onText();
  current.typing(false);
  current.scroll = null;
  current.send(text);
  current.markRead();
  $('text').focus();
}

function onKey(event) {
  const { key, altKey, shiftKey, isComposing, target } = event;
  if (target === $('text') && key === 'Enter' && !shiftKey && !isComposing) {
    event.preventDefault();
    $('composer').requestSubmit();
  } else if (altKey && (key === 'ArrowUp' || key === 'ArrowDown')) {
    event.preventDefault();
    const names = [...rooms.keys()];
    const step = key === 'ArrowDown' ? 1 : names.length - 1;
    goTo(names[(names.indexOf(current.name) + step) % names.length]);
    announce(current, `Room ${names[(names.indexOf(current.name) + step) % names.length]}`);
  } else if (key === 'Escape') {
    closePanels();
  }
}

function askName() {
  $('name').value = me.name || settings.name || suggestedName();
  $('name-dialog').showModal();
  $('name').select();
}

function suggestedName() {
  const pick = (words) => words[Math.floor(Math.random() * words.length)];
  const first = ['Quiet', 'Amber', 'Swift', 'Curious', 'Northern', 'Lucky', 'Paper', 'Velvet', 'Early', 'Brave'];
  const last = ['Otter', 'Heron', 'Lynx', 'Sparrow', 'Badger', 'Fox', 'Robin', 'Marten', 'Wren', 'Hare'];
  return `${pick(first)} ${pick(last)}`;
}

function onName(event) {
  const name = $('name').value.trim();
  if (!name) return event.preventDefault();
  saveMe({ name });
  saveSettings({ name });
  showMe();
  for (const room of rooms.values()) room.hello(true);
}

function showMe() {
  const name = ownName() || 'Nobody yet';
  const key = client.user ? `user ${client.user}` : `by ${me.id}`;
  $('me-name').textContent = name;
  $('me-avatar').replaceWith(avatar({ key, name }, 'me-avatar'));
  $('rename').hidden = Boolean(client.user);
  if (current) showPeople();
}

// ---- the panels ----

const panels = [
  { panel: $('rooms-panel'), open: $('rooms-open'), close: $('rooms-close') },
  { panel: $('people-panel'), open: $('people-open'), close: $('people-close') },
];

/** Over the conversation on narrow screens: the rest is out of reach meanwhile, and the focus comes back. */
function openPanel({ panel, open, close }) {
  panel.classList.add('open');
  open.setAttribute('aria-expanded', 'true');
  $('shade').hidden = false;
  document.querySelector('main').inert = true;
  close.focus();
}

function closePanels({ focus = true } = {}) {
  for (const { panel, open } of panels) {
    if (!panel.classList.contains('open')) continue;
    panel.classList.remove('open');
    open.setAttribute('aria-expanded', 'false');
    $('shade').hidden = true;
    document.querySelector('main').inert = false;
    if (focus) open.focus();
  }
}

const THEMES = { system: ['◐', 'as the system'], light: ['☀', 'light'], dark: ['☾', 'dark'] };

function showTheme() {
  const names = Object.keys(THEMES);
  const theme = names.includes(settings.theme) ? settings.theme : 'system';
  document.documentElement.dataset.theme = theme;
  const [sign, meaning] = THEMES[theme];
  $('theme-sign').textContent = sign;
  $('theme-text').textContent = `Colours: ${meaning}. Change`;
  $('theme').title = `Colours: ${meaning}`;
  return names[(names.indexOf(theme) + 1) % names.length];
}

// ---- the connection ----

let retryAt = 0;
let countdown;

function onState({ state, transport, error, retryIn, attempt }) {
  const words = {
    idle: 'Not connected',
    connecting: attempt ? 'Reconnecting…' : 'Connecting…',
    connected: transport === 'sse' ? 'Live, by event stream' : 'Live',
    waiting: 'Connection lost',
    closed: 'Not connected',
  };
  $('connection').dataset.state = document.documentElement.dataset.connection = state;
  if ($('connection-text').textContent !== words[state]) $('connection-text').textContent = words[state];
  clearInterval(countdown);
  if (state === 'connected') {
    $('notice').hidden = true;
    showMe();
  } else if (state === 'closed') {
    showNotice(`${plainly(error)} This page does not try again by itself.`, 'Connect again');
  } else if (state === 'waiting') {
    retryAt = Date.now() + retryIn;
    countdown = setInterval(() => showWait(error), 500);
    if (attempt > 1 || retryIn > 1500) showWait(error);
  }
}

function showWait(error) {
  const seconds = Math.max(1, Math.ceil((retryAt - Date.now()) / 1000));
  const why = error?.code === 'draining' ? 'The server is restarting.' : 'The connection is lost.';
  showNotice(`${why} Next try in ${seconds} s; what you write is sent then.`, 'Try now');
}

function showNotice(text, action) {
  $('notice-text').textContent = text;
  $('try-now').textContent = action;
  $('notice').hidden = false;
}

/** What the token says of oneself; the server has checked it. */
function readClaims(token) {
  try {
    const bytes = Uint8Array.from(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')), (char) =>
      char.charCodeAt(0),
    );
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return undefined;
  }
}

function listen() {
  $('composer').addEventListener('submit', onSend);
  $('text').addEventListener('input', () => {
    onText();
    current.typing($('text').value.trim() !== '');
  });
  document.addEventListener('keydown', onKey);
  $('log').addEventListener('scroll', onScroll, { passive: true });
  new ResizeObserver(() => current.atBottom && ($('log').scrollTop = $('log').scrollHeight)).observe($('log'));
  $('pill').addEventListener('click', toBottom);
  for (const type of ['focus', 'visibilitychange']) {
    window.addEventListener(type, () => looking() && current.unread && current.markRead());
  }
  window.addEventListener('hashchange', () => {
    const wanted = readAddress();
    openRoom(wanted || current.name);
    closePanels({ focus: false });
    if (matchMedia('(pointer: coarse)').matches) $('room-title').focus();
    else $('text').focus();
  });
  $('new-room').addEventListener('submit', (event) => {
    event.preventDefault();
    const name = cleanRoomName($('new-room-name').value);
    $('new-room-error').textContent = name ? '' : 'A room needs a name.';
    if (!name) return;
    $('new-room-name').value = '';
    goTo(name);
  });
  $('rename').addEventListener('click', askName);
  $('name-form').addEventListener('submit', onName);
  $('name-dialog').addEventListener('close', () => {
    $('text').focus();
    if (looking()) current.markRead();
  });
  for (const each of panels) {
    each.open.addEventListener('click', () => openPanel(each));
    each.close.addEventListener('click', () => closePanels());
  }
  $('shade').addEventListener('click', () => closePanels());
  $('theme').addEventListener('click', () => {
    saveSettings({ theme: showTheme() });
    showTheme();
  });
  $('try-now').addEventListener('click', () => client.connect());
  $('copy').addEventListener('click', async () => {
    const done = await navigator.clipboard?.writeText($('curl').textContent).then(
      () => true,
      () => false,
    );
    $('copy').textContent = done ? 'Copied' : 'Select it by hand';
    setTimeout(() => ($('copy').textContent = 'Copy'), 2000);
  });
}

showTheme();
const wanted = readAddress();
const claims = readClaims(me.token);
const client = new Fanwire({ token: me.token || undefined, app: me.app || undefined, onState });
listen();
for (const name of new Set([...settings.rooms, wanted])) if (name) rooms.set(name, new Room(name));
openRoom(wanted || rooms.keys().next().value);
onText();
showMe();
if (ownName()) $('text').focus();
else askName();
