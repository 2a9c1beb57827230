/**
 * The browser client of Fanwire: one ES module without dependencies. The protocol is docs/protocol-native.md.
 *
 *     const client = new Fanwire();
 *     const room = client.subscribe('room:lobby', { last: 50, onMessage: (message) => show(message.data) });
 *     await client.publish('room:lobby', { text: 'hello' });
 *
 * What it promises:
 * - In channels with history each publication reaches the application once and in order, however often the connection
 *   breaks: every subscription resumes after its own position. What cannot be had any more is told by a `gap` event.
 * - Channels without history are delivered at most once: what is published while the connection is away is lost, and
 *   only a further `subscribed` event tells that there was a break.
 * - A publication is retried after a reconnect with the same idempotency key, so that it is stored once. Its promise is
 *   kept or broken within its deadline; nothing waits for ever, and every queue here has a bound.
 *
 * From top to bottom: errors and codes, `Fanwire` (the conversation and when to reconnect), `Subscription` (one
 * channel's position), `SocketLink` and `StreamLink` (WebSocket, and the event stream where WebSocket is blocked; both
 * speak the same frames). Start at `Fanwire`.
 */

/** Milliseconds, unless they say otherwise. An application may change those that `options` names. */
const DEFAULTS = {
  openTimeout: 10_000,
  commandTimeout: 10_000,
  tokenTimeout: 15_000,
  publishDeadline: 30_000,
  /** The server remembers an idempotency key for 5 minutes; a later retry could be stored twice. */
  longestDeadline: 240_000,
  backoff: { first: 500, longest: 20_000 },
  /** A connection that lived this long was a good one: the next wait starts short again. */
  stableAfter: 10_000,
  /** Silence after a ping of ours, and what an event stream may be silent for where the server sends comments. */
  pongTimeout: 10_000,
  streamSilence: 60_000,
  /** Event streams have no join and leave: the member list is asked for this often. */
  presencePoll: 20_000,
  /** Publications that wait for their acknowledgement or for a connection: how many, and how many bytes. */
  maxQueued: 256,
  maxQueuedBytes: 1 << 20,
  /** Publications under way at once. */
  window: 32,
  maxReads: 128,
  /** Frames at once and each second, to stay below what the server lets one connection send (200 by default). */
  framesPerSecond: 150,
};

/** The close codes by the names that `disconnect` frames carry. */
const CLOSE_CODES = {
  draining: 1001,
  ping_timeout: 4000,
  slow: 4001,
  broker_lost: 4002,
  internal: 4003,
  unauthorized: 4100,
  forbidden: 4101,
  limits: 4102,
  unknown_app: 4103,
  connection_limit: 4104,
  token_expired: 4200,
  token_revoked: 4201,
};

/** Refusals after which the same command may succeed later, unchanged. */
const TEMPORARY = new Set(['rate_limited', 'unavailable', 'timeout', 'internal', 'upstream_error']);

/** Why something failed. `code` is the server's (docs/protocol-native.md), or `closed` where this client was closed. */
export class FanwireError extends Error {
  constructor(code, message, { channel, retryAfter, key, closeCode, cause } = {}) {
    super(message || code, cause === undefined ? undefined : { cause });
    this.name = 'FanwireError';
    this.code = code;
    this.channel = channel;
    /** Seconds after which it may be tried again, where the server said so. */
    this.retryAfter = retryAfter;
    /** The publication's idempotency key: publish again with it, and it is stored once. */
    this.key = key;
    /** The WebSocket close code, where the connection ended. */
    this.closeCode = closeCode;
  }

  /** Whether the same may succeed later, unchanged. */
  get temporary() {
    return TEMPORARY.has(this.code);
  }

  static fromFrame(frame, more = {}) {
    const { code = 'internal', message, channel, retry_after: retryAfter } = frame;
    return new FanwireError(code, message, { channel, retryAfter, ...more });
  }
}

/**
 * What to do after a connection ended, by the table of close codes:
 * `again` (with back-off), `renew` (fetch a new token first), `refused` (do not send the same again) or `stop`.
 */
export function verdict(code, disconnect) {
  if (4200 <= code && code < 4300) return 'renew';
  if (4100 <= code && code < 4200) return 'stop';
  if ([1002, 1003, 1007, 1009].includes(code)) return 'refused';
  if (disconnect?.reconnect === false) return 'stop';
  if (code === 1000 && disconnect?.reconnect !== true) return 'stop';
  return 'again';
}

/**
 * How long to wait before the `attempt`-th try (from 0): anywhere from nothing to a whole that doubles, so that clients
 * which lost the same server do not return together. Source: "Exponential Backoff And Jitter", AWS, 2015 (full jitter).
 */
export function backoff(attempt, { first, longest } = DEFAULTS.backoff, random = Math.random) {
  return random() * Math.min(longest, first * 2 ** Math.min(attempt, 20));
}

// Module-private names by which `Fanwire` drives its subscriptions.
const begin = Symbol('begin');
const lost = Symbol('lost');
const take = Symbol('take');

/**
 * One client: one connection at a time, its subscriptions and what waits to be published.
 *
 *     idle ── connect ──▶ connecting ── welcome ──▶ connected
 *                         ▲        │                    │
 *                     timer,    failed                lost
 *                     online       ▼                    │
 *                         └──── waiting ◀───────────────┘        any ── close(), or a code that says stop ──▶ closed
 *
 * Events, each with its facts in `detail`: `state`, `error` (what went wrong without ending anything), and `message`
 * for channels that the server subscribed this connection to by itself.
 */
export class Fanwire extends EventTarget {
  #base;
  #settings;
  #state = 'idle';
  #error = null;
  #welcome = null;
  #link = null;
  /** Rises with each try and each close, so that what an older one awaited finds itself void. */
  #turn = 0;
  #attempt = 0;
  #brokenFrames = 0;
  #timers = new Timers();
  #hurry = false;
  #socketEver = false;
  #streamEver = false;
  #socketFailures = 0;
  #lastTried = null;
  #token;
  #renewals = 0;
  #subscriptions = new Map();
  #nextId = 1;
  #commands = new Map();
  #outbox = new Map();
  #outboxBytes = 0;
  #pausedUntil = 0;
  /** Ids of own publications without echo, so that a resumed subscription or an event stream does not show them. */
  #unechoed = new Set();
  #unwatch = () => {};
  #linkMemory = {};

  constructor(url, options) {
    super();
    if (url !== null && typeof url === 'object' && !(url instanceof URL)) [url, options] = [undefined, url];
    this.#base = baseOf(url);
    this.#settings = { ...DEFAULTS, transports: ['websocket', 'sse'], autoConnect: true, ...options };
    this.#settings.backoff = { ...DEFAULTS.backoff, ...options?.backoff };
    this.#token = new TokenSource(this.#settings, this.#settings.tokenTimeout);
    listen(this, this.#settings, { onState: 'state', onError: 'error' });
    if (this.#settings.autoConnect) queueMicrotask(() => this.#state === 'idle' && this.connect());
  }

  /** `idle`, `connecting`, `connected`, `waiting` (for the next try) or `closed`. */
  get state() {
    return this.#state;
  }

  /** Why the last connection ended or could not be made; null while all is well. */
  get error() {
    return this.#error;
  }

  /** This connection's id, while connected by WebSocket. */
  get connection() {
    return this.#welcome?.connection;
  }

  /** The token's `sub`, while connected and not anonymous. */
  get user() {
    return this.#welcome?.user;
  }

  /** `websocket` or `sse`, while connected. */
  get transport() {
    return this.#state === 'connected' ? this.#link.transport : null;
  }

  /**
   * Connects. Only needed after `close()`, after the server said stop, or with `autoConnect: false`; while waiting for
   * the next try it cuts the wait short.
   */
  connect() {
    if (this.#state === 'waiting') return this.#timers.set('retry', 0, () => this.#open());
    if (this.#state !== 'idle' && this.#state !== 'closed') return;
    this.#attempt = 0;
    this.#brokenFrames = 0;
    this.#unwatch();
    this.#unwatch = watchPage({
      wake: () => this.#wake(0),
      online: () => this.#wake(Math.random() * 1000),
      offline: () => this.#link?.probe(this.#settings.pongTimeout / 2),
    });
    this.#open();
  }

  /** Ends the connection for good. What still waits fails with `closed`; `connect()` starts again. */
  close() {
    if (this.#state === 'closed') return;
    this.#stop(new FanwireError('closed', 'the client was closed'));
  }

  /**
   * Subscribes to `channel` and keeps it subscribed over reconnects until `unsubscribe()`.
   * `last`: the newest n first; `after`: a position kept from an earlier `subscription.position`.
   */
  subscribe(channel, options = {}) {
    if (this.#subscriptions.has(channel)) {
      throw new FanwireError('already_subscribed', `already subscribed to \`${channel}\``, { channel });
    }
    const subscription = new Subscription(channel, options, {
      settings: this.#settings,
      connected: () => this.#state === 'connected',
      command: (frame, done) => this.#command(frame, done, { read: false }),
      publish: (data, more) => this.publish(channel, data, more),
      reconnect: (error) => this.#link?.fail(4000, error.message),
      forget: () => this.#subscriptions.delete(channel),
      isUnechoed: (id) => this.#unechoed.has(id),
    });
    this.#subscriptions.set(channel, subscription);
    if (this.#state === 'connected') subscription[begin]();
    return subscription;
  }

  /** The subscription to `channel`, if there is one. */
  subscription(channel) {
    return this.#subscriptions.get(channel);
  }

  /**
   * Publishes `data` (anything that JSON holds). Resolves when the server has stored or relayed it.
   *
   * Without a connection it waits, up to `deadline` milliseconds; what a lost connection left unanswered is sent again
   * with the same key. Rejects with a `FanwireError`: `unavailable` was never sent, `timeout` may have been stored
   * (publish again with `error.key`), the others are the server's own refusals.
   */
  publish(channel, data, { event, key = randomKey(), echo, tags, deadline = this.#settings.publishDeadline } = {}) {
    const id = this.#nextId++;
    let text;
    try {
      text = JSON.stringify({ type: 'publish', id, channel, event, data, key, echo, tags });
    } catch (cause) {
      return Promise.reject(new FanwireError('bad_request', `data is not JSON: ${cause.message}`, { channel, cause }));
    }
    if (data === undefined) return Promise.reject(new FanwireError('bad_request', 'data is missing', { channel }));
    if (this.#state === 'closed')
      return Promise.reject(new FanwireError('closed', 'the client is closed', { channel, key }));
    const { maxQueued, maxQueuedBytes, longestDeadline } = this.#settings;
    if (this.#outbox.size >= maxQueued || (this.#outboxBytes && this.#outboxBytes + text.length > maxQueuedBytes)) {
      const message = `${this.#outbox.size} publications (${this.#outboxBytes} bytes) already wait`;
      return Promise.reject(new FanwireError('limit_exceeded', message, { channel, key }));
    }
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#overdue(id), Math.min(deadline, longestDeadline));
      const waited = this.#state !== 'connected';
      this.#outbox.set(id, { id, text, channel, key, echo, sentOn: null, waited, timer, resolve, reject });
      this.#outboxBytes += text.length;
      this.#pump();
    });
  }

  /** Who is subscribed to `channel` now: `{ members, users }`. */
  presence(channel) {
    return this.#read({ type: 'presence', channel });
  }

  /** What `channel` keeps: `{ epoch, offset, messages }`. `limit` up to 1000, `after` and `before` are offsets. */
  history(channel, { limit, after, before, reverse } = {}) {
    return this.#read({ type: 'history', channel, limit, after, before, reverse });
  }

  // ---- the connection ----

  #setState(state, facts = {}) {
    const previous = this.#state;
    this.#state = state;
    emit(this, 'state', { state, previous, transport: this.transport, error: this.#error, ...facts });
  }

  async #open() {
    const turn = ++this.#turn;
    this.#timers.clear('retry');
    this.#setState('connecting', { attempt: this.#attempt });
    if (turn !== this.#turn) return;
    let token;
    try {
      token = await this.#token.get();
    } catch (cause) {
      if (turn !== this.#turn) return;
      const error = new FanwireError('unauthorized', `no token: ${cause.message}`, { cause });
      emit(this, 'error', error);
      return this.#wait(error);
    }
    if (turn !== this.#turn) return;
    const Link = this.#pickTransport() === 'sse' ? StreamLink : SocketLink;
    let link;
    const hooks = {
      frame: (frame) => link === this.#link && this.#onFrame(frame),
      end: (facts) => link === this.#link && this.#ended(facts),
    };
    try {
      link = new Link({ base: this.#base, token, settings: this.#settings, memory: this.#linkMemory }, hooks);
    } catch (cause) {
      return this.#stop(new FanwireError('bad_request', cause.message, { cause }));
    }
    this.#link = link;
  }

  /**
   * WebSocket, unless it never once worked here and two tries failed: then the event stream takes turns with it, and is
   * kept once it worked. A WebSocket that worked before is not blocked, so its failures are the server's or the network's.
   */
  #pickTransport() {
    const { transports } = this.#settings;
    let pick = 'websocket';
    if (!transports.includes('websocket')) pick = 'sse';
    else if (transports.includes('sse') && !this.#socketEver && this.#socketFailures >= 2) {
      pick = this.#streamEver || this.#lastTried !== 'sse' ? 'sse' : 'websocket';
    }
    return (this.#lastTried = pick);
  }

  #onFrame(frame) {
    switch (frame.type) {
      case 'welcome':
        return this.#welcomed(frame);
      case 'message':
      case 'join':
      case 'leave':
        return this.#onPush(frame);
      case 'subscribed':
      case 'unsubscribed':
        if (this.#answer(frame)) return;
        return this.#subscriptions.get(frame.channel)?.[take](frame);
      case 'published':
        return this.#published(frame);
      default:
        // An unknown type without an id of ours is a later server's, and none of our business.
        if (!this.#answer(frame) && frame.type === 'error') this.#refused(frame);
    }
  }

  #onPush(frame) {
    const subscription = this.#subscriptions.get(frame.channel);
    if (subscription) subscription[take](frame);
    else if (frame.type === 'message') emit(this, 'message', messageOf(frame));
  }

  #welcomed(frame) {
    if (this.#link.transport === 'websocket') this.#socketEver = true;
    else this.#streamEver = true;
    this.#welcome = frame;
    this.#error = null;
    this.#timers.set('stable', this.#settings.stableAfter, () => {
      this.#attempt = 0;
      this.#brokenFrames = 0;
    });
    this.#token.expires(frame.expires);
    this.#scheduleRenewal();
    const link = this.#link;
    this.#setState('connected', { connection: frame.connection, user: frame.user });
    if (link !== this.#link) return;
    // What was under way goes first where the subscription resumes: its recovery then brings the echo, and by then
    // `published` has told which offset was our own. Elsewhere an echo needs the subscription first.
    for (const item of this.#outbox.values()) {
      if (item.sentOn && this.#subscriptions.get(item.channel)?.position) this.#sendItem(item);
    }
    for (const subscription of [...this.#subscriptions.values()]) subscription[begin]();
    for (const command of this.#commands.values()) if (command.read) link.send(command.text);
    this.#pausedUntil = 0;
    this.#pump();
  }

  #ended({ code, reason, disconnect }) {
    const link = this.#link;
    if (link.transport === 'websocket' && !this.#welcome) this.#socketFailures += 1;
    const what = disconnect?.message || reason || `connection lost (${code})`;
    const name =
      disconnect?.code ?? (Object.keys(CLOSE_CODES).find((key) => CLOSE_CODES[key] === code) || 'unavailable');
    const error = new FanwireError(name, what, { closeCode: code, retryAfter: disconnect?.delay });
    this.#dropLink();
    switch (verdict(code, disconnect)) {
      case 'stop':
        return this.#stop(error);
      case 'renew':
        if (!this.#token.renewable) return this.#stop(error);
        this.#token.drop();
        return this.#wait(error);
      case 'refused':
        // Once is a frame of ours that is not sent again; at the third time in a row it is not a single frame.
        this.#giveUpOnBroken(link, code, error);
        if (++this.#brokenFrames >= 3) return this.#stop(error);
        return this.#wait(error);
      default:
        return this.#wait(error, disconnect?.delay);
    }
  }

  /** Takes the connection away from all that used it, without deciding what comes next. */
  #dropLink() {
    const link = this.#link;
    this.#turn += 1;
    this.#link = null;
    this.#welcome = null;
    link?.close();
    for (const name of ['stable', 'renew', 'pump']) this.#timers.clear(name);
    for (const item of this.#outbox.values()) item.waited = true;
    for (const [id, command] of this.#commands) if (!command.read) this.#forgetCommand(id);
    for (const subscription of this.#subscriptions.values()) subscription[lost]();
  }

  /** Waits before the next try: for as many seconds as the server said, else with back-off. */
  #wait(error, delaySeconds) {
    this.#error = error;
    const told = Number.isFinite(delaySeconds) && delaySeconds >= 0;
    const retryIn = told ? Math.min(delaySeconds, 600) * 1000 : backoff(this.#attempt, this.#settings.backoff);
    this.#hurry = !told;
    this.#attempt += 1;
    this.#timers.set('retry', retryIn, () => this.#open());
    this.#setState('waiting', { retryIn, attempt: this.#attempt });
  }

  /** The page is looked at again or the network is back: do not wait on, and do not trust an old connection. */
  #wake(delay) {
    if (this.#state === 'connected') this.#link.probe(this.#settings.pongTimeout / 2);
    if (this.#state === 'waiting' && this.#hurry) this.#timers.set('retry', delay, () => this.#open());
  }

  #stop(error) {
    this.#dropLink();
    this.#timers.clearAll();
    this.#unwatch();
    this.#error = error;
    this.#token.drop('connect');
    for (const item of [...this.#outbox.values()]) {
      this.#settle(item).reject(new FanwireError(error.code, error.message, { channel: item.channel, key: item.key }));
    }
    for (const [id, command] of [...this.#commands]) this.#forgetCommand(id).done(error);
    this.#setState('closed');
  }

  // ---- the token ----

  #scheduleRenewal() {
    const wait = this.#token.renewIn();
    if (wait === null || !this.#token.renewable) return this.#timers.clear('renew');
    // A clock that is far off would ask for a new token at once, again and again: each such time waits longer.
    const floor = Math.min(60_000, 1000 * 2 ** this.#renewals);
    this.#renewals = wait < floor ? this.#renewals + 1 : 0;
    this.#timers.set('renew', Math.max(wait, floor), () => this.#renew());
  }

  async #renew() {
    const link = this.#link;
    const failed = (error) => {
      if (link !== this.#link) return;
      emit(this, 'error', error);
      this.#scheduleRenewal();
    };
    let token;
    try {
      token = await this.#token.fetch('expiring');
    } catch (cause) {
      return failed(new FanwireError('unauthorized', `no new token: ${cause.message}`, { cause }));
    }
    if (link !== this.#link) return;
    this.#command({ type: 'auth', token }, (error, frame) => {
      if (error) return failed(error);
      this.#token.expires(frame.expires);
      this.#welcome = { ...this.#welcome, user: frame.user ?? this.#welcome.user };
      this.#scheduleRenewal();
    });
  }

  // ---- commands with one answer ----

  /** A question that changes nothing, so that it may be asked again on the next connection. */
  #read(frame) {
    if (this.#state === 'closed') return Promise.reject(new FanwireError('closed', 'the client is closed', frame));
    if (this.#commands.size >= this.#settings.maxReads) {
      return Promise.reject(new FanwireError('limit_exceeded', `${this.#commands.size} questions already wait`, frame));
    }
    return new Promise((resolve, reject) => {
      const done = (error, answer) => (error ? reject(error) : resolve(withoutEnvelope(answer)));
      this.#command(frame, done, { read: true });
    });
  }

  /** Sends `frame` and calls `done(error, answer)` exactly once, unless the connection goes and `read` is not set. */
  #command(frame, done, { read = false } = {}) {
    const id = this.#nextId++;
    const text = JSON.stringify({ ...frame, id });
    const timer = setTimeout(() => {
      this.#forgetCommand(id);
      done(new FanwireError('timeout', `no answer to \`${frame.type}\` in time`, { channel: frame.channel }));
    }, this.#settings.commandTimeout);
    this.#commands.set(id, { done, timer, read, text });
    if (this.#state === 'connected') this.#link.send(text);
    return id;
  }

  #forgetCommand(id) {
    const command = this.#commands.get(id);
    this.#commands.delete(id);
    clearTimeout(command.timer);
    return command;
  }

  /** Hands an answer to whoever asked; whether somebody had. */
  #answer(frame) {
    if (!this.#commands.has(frame.id)) return false;
    const { done } = this.#forgetCommand(frame.id);
    if (frame.type === 'error') done(FanwireError.fromFrame(frame));
    else done(null, frame);
    return true;
  }

  // ---- publications ----

  #pump() {
    if (this.#state !== 'connected') return;
    const pause = this.#pausedUntil - Date.now();
    if (pause > 0) return this.#timers.set('pump', pause, () => this.#pump());
    let underWay = 0;
    for (const item of this.#outbox.values()) {
      if (item.sentOn === this.#link) underWay += 1;
      else if (underWay < this.#settings.window) {
        this.#sendItem(item);
        underWay += 1;
      }
    }
  }

  #sendItem(item) {
    item.sentOn = this.#link;
    this.#link.send(item.text);
  }

  #published(frame) {
    const item = this.#outbox.get(frame.id);
    if (!item) return;
    if (item.echo === false) {
      this.#unechoed.add(frame.publication);
      if (this.#unechoed.size > 256) this.#unechoed.delete(this.#unechoed.values().next().value);
    }
    const { publication, epoch, offset } = frame;
    this.#settle(item).resolve({ channel: item.channel, publication, epoch, offset, key: item.key });
    this.#pump();
  }

  /** An `error` frame that answers no command: a publication's, or one that names no id of ours. */
  #refused(frame) {
    const item = this.#outbox.get(frame.id);
    if (!item) return emit(this, 'error', FanwireError.fromFrame(frame));
    // Those that piled up while the connection was away would not have met the limit one by one.
    if (frame.code === 'rate_limited' && item.waited) {
      item.sentOn = null;
      this.#pausedUntil = Date.now() + 1000 * (frame.retry_after ?? 1);
    } else {
      this.#settle(item).reject(FanwireError.fromFrame(frame, { channel: item.channel, key: item.key }));
    }
    this.#pump();
  }

  #overdue(id) {
    const item = this.#outbox.get(id);
    const [code, message] = item.sentOn
      ? ['timeout', 'not acknowledged in time: it may have been published']
      : ['unavailable', 'not published: there was no connection in time'];
    this.#settle(item).reject(new FanwireError(code, message, { channel: item.channel, key: item.key }));
    this.#pump();
  }

  #settle(item) {
    clearTimeout(item.timer);
    this.#outbox.delete(item.id);
    this.#outboxBytes -= item.text.length;
    return item;
  }

  /** What was under way when the server closed for a broken frame is not sent again: for 1009 the largest, else all. */
  #giveUpOnBroken(link, code, error) {
    let broken = [...this.#outbox.values()].filter((item) => item.sentOn === link);
    if (code === 1009) broken = broken.sort((a, b) => b.text.length - a.text.length).slice(0, 1);
    for (const item of broken) {
      const facts = { channel: item.channel, key: item.key, closeCode: code };
      this.#settle(item).reject(new FanwireError(code === 1009 ? 'too_large' : 'bad_request', error.message, facts));
    }
  }
}

/**
 * One channel, kept subscribed. It holds the position, so nobody else needs to think about doubles and gaps.
 *
 * Events, each with its facts in `detail`: `message`, `subscribed`, `gap`, `join`, `leave`, `members`, `error`,
 * `unsubscribed`. The same as callbacks in the options: `onMessage(message, subscription)` and so on.
 */
export class Subscription extends EventTarget {
  #port;
  #options;
  #state = 'pending';
  #asked = false;
  #turn = 0;
  #attempt = 0;
  #position = null;
  #history;
  #members = new Map();
  #token;
  #timers = new Timers();
  #ready = openPromise();

  constructor(channel, options, port) {
    super();
    this.channel = channel;
    this.#port = port;
    this.#options = options;
    this.#position = options.after ? { epoch: options.after.epoch, offset: options.after.offset } : null;
    this.#token = new TokenSource(options, port.settings.tokenTimeout, { channel });
    this.#ready.promise.catch(() => {}); // Who does not look at `ready` has the events.
    listen(this, options, {
      onMessage: 'message',
      onSubscribed: 'subscribed',
      onGap: 'gap',
      onJoin: 'join',
      onLeave: 'leave',
      onMembers: 'members',
      onError: 'error',
      onUnsubscribed: 'unsubscribed',
    });
  }

  /** `pending` (asked for, or waiting for the connection), `subscribed` or `unsubscribed`. */
  get state() {
    return this.#state;
  }

  /** The last publication seen, as `{ epoch, offset }`: keep it, and a later `after` resumes there. Null without history. */
  get position() {
    return this.#position && { ...this.#position };
  }

  /** Whether the channel keeps history; undefined until the server has said so. Without: delivery at most once. */
  get history() {
    return this.#history;
  }

  /** Who is here, kept by joins and leaves; needs `presence: true`. */
  get members() {
    return [...this.#members.values()];
  }

  /** Resolves with the first `subscribed`; rejects where the subscription is refused or ended before. */
  get ready() {
    return this.#ready.promise;
  }

  /** As `client.publish`, to this channel. */
  publish(data, options) {
    return this.#port.publish(data, options);
  }

  /** Ends the subscription. No further event comes. */
  unsubscribe() {
    if (this.#state === 'unsubscribed') return;
    if (this.#asked && this.#port.connected())
      this.#port.command({ type: 'unsubscribe', channel: this.channel }, () => {});
    this.#finish(new FanwireError('closed', 'unsubscribed', { channel: this.channel }));
  }

  async [begin]() {
    const turn = ++this.#turn;
    this.#timers.clearAll();
    let token;
    if (this.#token.present) {
      try {
        token = await this.#token.get();
      } catch (cause) {
        if (turn !== this.#turn) return;
        const { channel } = this;
        return this.#later(
          new FanwireError('unauthorized', `no token for \`${channel}\`: ${cause.message}`, { channel, cause }),
        );
      }
      if (turn !== this.#turn) return;
    }
    const { presence, last } = this.#options;
    const start = this.#position ? { after: this.#position } : { last };
    this.#asked = true;
    const frame = { type: 'subscribe', channel: this.channel, token, presence: presence || undefined, ...start };
    this.#port.command(frame, (error, answer) => {
      if (turn !== this.#turn) return;
      if (error) this.#refused(error);
      else this[take](answer);
    });
  }

  [lost]() {
    this.#turn += 1;
    this.#asked = false;
    this.#timers.clearAll();
    if (this.#state === 'subscribed') this.#state = 'pending';
  }

  [take](frame) {
    if (frame.type === 'subscribed') return this.#subscribed(frame);
    if (frame.type === 'unsubscribed') return this.#unsubscribedByServer(frame);
    if (this.#state !== 'subscribed') return; // A straggler of an earlier subscription to the same channel.
    if (frame.type === 'message') this.#message(frame);
    else this.#presence(frame);
  }

  #subscribed(frame) {
    const resumed = this.#position !== null;
    const { epoch, offset, recovered, members } = frame;
    this.#state = 'subscribed';
    this.#attempt = 0;
    this.#history = epoch !== undefined;
    const before = this.#position;
    // With `recovered` the server goes on after our own position, so that is kept whatever it says.
    if (!this.#history) this.#position = null;
    else if (!(resumed && recovered && before.epoch === epoch)) this.#position = { epoch, offset: offset ?? 0 };
    if (members) {
      this.#members = new Map(members.map((member) => [member.connection, member]));
    }
    const facts = { channel: this.channel, epoch, offset, recovered, history: this.#history };
    if (resumed && recovered !== true) emit(this, 'gap', { ...facts, before });
    emit(this, 'subscribed', facts);
    if (members) emit(this, 'members', this.members);
    this.#ready.resolve(this);
  }

  #message(frame) {
    if (this.#position && frame.offset !== undefined) {
      if (frame.offset <= this.#position.offset) return;
      this.#position.offset = frame.offset;
    }
    if (this.#port.isUnechoed(frame.id)) return;
    emit(this, 'message', messageOf(frame));
  }

  #presence({ type, member }) {
    if (type === 'join') this.#members.set(member.connection, member);
    else if (!this.#members.delete(member.connection)) return;
    emit(this, type, member);
    emit(this, 'members', this.members);
  }

  #unsubscribedByServer(frame) {
    this.#asked = false;
    this.#state = 'pending';
    this.#refused(FanwireError.fromFrame({ code: 'closed', ...frame }));
  }

  /** A refusal: some pass with time, some with a new token, one by starting afresh; the rest end the subscription. */
  #refused(error) {
    if (error.code === 'timeout') return this.#port.reconnect(error);
    if (error.temporary) return this.#later(error);
    if (['token_expired', 'token_revoked'].includes(error.code) && this.#token.renewable && this.#attempt < 3) {
      this.#token.drop();
      return this.#attempt++ === 0 ? this[begin]() : this.#later(error);
    }
    if (error.code === 'already_subscribed' && this.#attempt++ === 0) {
      this.#port.command({ type: 'unsubscribe', channel: this.channel }, () => {});
      return this[begin]();
    }
    if (error.code === 'history_disabled' && this.#position) {
      emit(this, 'gap', { channel: this.channel, before: this.#position });
      this.#position = null;
      return this[begin]();
    }
    emit(this, 'error', error);
    this.#finish(error);
  }

  #later(error) {
    emit(this, 'error', error);
    const wait = Math.max((error.retryAfter ?? 0) * 1000, backoff(this.#attempt, this.#port.settings.backoff));
    this.#attempt += 1;
    this.#timers.set('again', wait, () => this.#port.connected() && this[begin]());
  }

  #finish(error) {
    this.#turn += 1;
    this.#timers.clearAll();
    this.#state = 'unsubscribed';
    this.#asked = false;
    this.#port.forget();
    this.#ready.reject(error);
    emit(this, 'unsubscribed', error);
  }
}

/** Frames over WebSocket. Ends itself where nothing is heard; says so once, through `hooks.end`. */
class SocketLink {
  transport = 'websocket';
  #socket;
  #settings;
  #hooks;
  #timers = new Timers();
  #ping;
  #disconnect = null;
  #over = false;
  /** Frames that wait for their turn, and how many may go now. Bounded by what may be under way and by subscriptions. */
  #waiting = [];
  #allowance;
  #countedAt = performance.now();

  constructor({ base, token, settings }, hooks) {
    const url = new URL('v1/ws', base);
    url.protocol = url.protocol.replace('http', 'ws');
    if (settings.app) url.searchParams.set('app', settings.app);
    const Socket = settings.WebSocket ?? globalThis.WebSocket;
    if (!Socket) throw new Error('there is no WebSocket here: pass one as `options.WebSocket`');
    // A sub-protocol is not written to logs, as a query would be.
    this.#socket = new Socket(url.href, token ? ['fanwire.v1', `bearer.${token}`] : ['fanwire.v1']);
    this.#settings = settings;
    this.#allowance = settings.framesPerSecond;
    this.#hooks = hooks;
    this.#timers.set('open', settings.openTimeout, () => this.fail(4000, 'no welcome in time'));
    this.#socket.onmessage = ({ data }) => this.#onText(data);
    this.#socket.onclose = ({ code, reason }) => this.fail(code, reason);
    this.#socket.onerror = () => {}; // `close` follows, and says more.
  }

  send(text) {
    this.#waiting.push(text);
    this.#flush();
  }

  /** A bucket that fills evenly: a client with many subscriptions would else break the server's limit on its return. */
  #flush() {
    const { framesPerSecond } = this.#settings;
    const now = performance.now();
    this.#allowance = Math.min(framesPerSecond, this.#allowance + ((now - this.#countedAt) * framesPerSecond) / 1000);
    this.#countedAt = now;
    const sent = this.#waiting.splice(0, this.#allowance);
    this.#allowance -= sent.length;
    for (const text of sent) this.#write(text);
    if (this.#waiting.length) this.#timers.set('flush', 50, () => this.#flush());
  }

  #write(text) {
    if (this.#socket.readyState === 1) this.#socket.send(text);
  }

  /** Asks for a sign of life within `timeout`. */
  probe(timeout) {
    if (!this.#ping || this.#timers.has('pong')) return;
    this.#write('{"type":"ping"}');
    this.#timers.set('pong', timeout, () => this.fail(4000, 'the server went silent'));
  }

  close() {
    this.#over = true;
    this.#timers.clearAll();
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }

  fail(code, reason) {
    if (this.#over) return;
    const disconnect = this.#disconnect;
    this.close();
    this.#hooks.end({ code: CLOSE_CODES[disconnect?.code] ?? code, reason, disconnect });
  }

  #onText(text) {
    this.#timers.clear('pong');
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return this.fail(4003, 'the server sent something that is not JSON');
    }
    if (frame.type === 'welcome') {
      this.#ping = 1000 * (frame.ping || 25);
      this.#timers.clear('open');
    }
    if (frame.type === 'disconnect') {
      this.#disconnect = frame;
      this.#timers.set('open', 5000, () => this.fail(4000, frame.message));
    }
    if (this.#ping) this.#timers.set('quiet', this.#ping, () => this.probe(this.#settings.pongTimeout));
    this.#hooks.frame(frame);
  }
}

/**
 * The same frames over plain HTTP: an event stream to receive, POST to publish.
 *
 * One stream carries all channels, so that a changed set of them opens it anew; it resumes by `Last-Event-ID`. What that
 * does not cover (a position from before, `last`) is read from the history and put before the stream's own. It is read
 * with `fetch`, since an `EventSource` neither shows why it was refused nor can name a position of its own.
 */
class StreamLink {
  transport = 'sse';
  #base;
  #token;
  #settings;
  #hooks;
  #timers = new Timers();
  /** By channel: what was asked, what is known, and what is held back while history is read. */
  #channels = new Map();
  /** What outlives one link: the last event's id, from which the next one resumes. */
  #memory;
  #stream = null;
  #oneByOne = false;
  #comments = false;
  /** Publications go one after the other, so that their order holds. */
  #publishing = Promise.resolve();
  #stopped = new AbortController();

  constructor({ base, token, settings, memory }, hooks) {
    this.#memory = memory;
    this.#base = base;
    this.#token = token;
    this.#settings = settings;
    this.#hooks = hooks;
    this.#greet();
  }

  send(text) {
    const frame = JSON.parse(text);
    const { type, id, channel } = frame;
    switch (type) {
      case 'subscribe':
        return this.#subscribe(frame);
      case 'unsubscribe':
        this.#channels.delete(channel);
        this.#reopen();
        return queueMicrotask(() => this.#emit({ type: 'unsubscribed', id, channel }));
      case 'publish':
        this.#publishing = this.#publishing.then(() => this.#publish(frame));
        return;
      case 'presence':
      case 'history':
        return void this.#ask(type, frame).then(
          (answer) => this.#emit({ ...answer, type, id, channel }),
          (error) => this.#emit({ ...error.problem, type: 'error', id, channel }),
        );
      case 'auth':
        this.#token = frame.token;
        this.#reopen();
        return queueMicrotask(() => this.#emit({ type: 'authenticated', id, expires: claims(frame.token)?.exp }));
      default:
        return queueMicrotask(() =>
          this.#emit({ type: 'error', id, code: 'bad_request', message: `no \`${type}\` without WebSocket` }),
        );
    }
  }

  /** A new stream finds out whether the server is there, and costs nothing: it resumes. */
  probe() {
    this.#reopen();
  }

  close() {
    this.#timers.clearAll();
    this.#stopped.abort();
    this.#stream?.abort();
  }

  fail(code, reason, disconnect = null) {
    if (this.#stopped.signal.aborted) return;
    this.close();
    this.#hooks.end({ code: CLOSE_CODES[disconnect?.code] ?? code, reason, disconnect });
  }

  #emit(frame) {
    if (!this.#stopped.signal.aborted) this.#hooks.frame(frame);
  }

  /** An event stream begins with its channels, so whether the server is there at all is asked first. */
  async #greet() {
    try {
      const response = await this.#fetch(new URL('healthz', this.#base));
      if (!response.ok) throw new Error(`/healthz answered ${response.status}`);
      await response.body?.cancel();
      this.#emit({ type: 'welcome', expires: claims(this.#token)?.exp });
    } catch (error) {
      this.fail(1006, error.message);
    }
  }

  #subscribe({ id, channel, after, last, presence, token }) {
    const refuse = (code, message) => queueMicrotask(() => this.#emit({ type: 'error', id, channel, code, message }));
    if (token) return refuse('bad_request', 'a channel with a token of its own needs WebSocket');
    const length = [...this.#channels.keys(), channel].reduce(
      (sum, name) => sum + encodeURIComponent(name).length + 9,
      0,
    );
    if (length > 6000) return refuse('limit_exceeded', 'more channels than one event stream can name');
    this.#channels.set(channel, {
      id,
      last,
      presence,
      position: after ?? null,
      live: false,
      announced: false,
      held: [],
      turn: 0,
      members: null,
    });
    this.#reopen();
  }

  #reopen() {
    // Several subscriptions made together make one stream.
    this.#timers.set('reopen', 0, () => this.#run());
  }

  async #run() {
    this.#stream?.abort();
    for (const name of ['open', 'silence']) this.#timers.clear(name);
    if (this.#channels.size === 0) return;
    const stream = (this.#stream = new AbortController());
    const url = this.#url('v1/events');
    let unsure = 0;
    for (const [name, channel] of this.#channels) {
      if (!channel.announced && unsure++ && this.#oneByOne) continue;
      url.searchParams.append('channel', name);
    }
    const headers = { accept: 'text/event-stream' };
    if (this.#memory.lastEventId) headers['last-event-id'] = this.#memory.lastEventId;
    this.#timers.set('open', this.#settings.openTimeout, () =>
      this.fail(4000, 'the event stream did not open in time'),
    );
    try {
      const response = await this.#fetch(url, { headers, signal: stream.signal, timeout: false });
      if (stream.signal.aborted) return;
      this.#timers.clear('open');
      if (!response.ok) return await this.#refused(await problemOf(response));
      this.#heard();
      await readEvents(response.body, (event) => stream.signal.aborted || this.#onEvent(event));
      if (!stream.signal.aborted) this.fail(1006, 'the event stream ended');
    } catch (error) {
      if (!stream.signal.aborted) this.fail(1006, error.message);
    }
  }

  /** A refused stream: for one channel, for the token, or for now. */
  #refused(problem) {
    const { code, message, status } = problem;
    if (code === 'token_expired' || code === 'token_revoked') return this.fail(4200, message, { code, message });
    if (status === 401 && this.#token) return this.fail(4100, message, { code: 'unauthorized', message });
    if (status === 429 || status >= 500) {
      return this.fail(4003, message, { code, message, reconnect: true, delay: problem.retry_after });
    }
    const unsure = [...this.#channels].filter(([, channel]) => !channel.announced);
    const [name, channel] =
      unsure.find(([name]) => name === problem.channel) ??
      (unsure.length === 1 || this.#oneByOne ? (unsure[0] ?? []) : []);
    if (channel) {
      this.#channels.delete(name);
      this.#emit({ type: 'error', id: channel.id, code, message, channel: name });
    } else if (unsure.length > 1) {
      this.#oneByOne = true; // It was one of several, and nobody said which.
    } else {
      return this.fail(4003, message, { code, message });
    }
    this.#reopen();
  }

  /** Where the server sends comments to keep the stream alive, their absence tells that it is not. */
  #heard() {
    if (this.#comments)
      this.#timers.set('silence', this.#settings.streamSilence, () => this.fail(4000, 'the event stream went silent'));
  }

  #onEvent({ comment, event, data, id }) {
    this.#comments ||= comment === true;
    this.#heard();
    if (comment) return;
    if (id !== undefined) this.#memory.lastEventId = id;
    if (!data) return;
    const frame = JSON.parse(data);
    if (event === 'subscribed') return this.#subscribed(frame);
    if (event === 'disconnect') return this.fail(4003, frame.message, frame);
    const channel = this.#channels.get(frame.channel);
    if (event !== 'message' || !channel) return this.#emit(frame);
    if (channel.live) return this.#pass(channel, frame);
    if (channel.held.push(frame) > 1000) this.fail(4001, 'more than 1000 publications while history was read');
  }

  #pass(channel, frame) {
    // What history and the stream both brought is dropped by the subscription, which holds the position that counts.
    if (channel.position) channel.position.offset = Math.max(channel.position.offset, frame.offset ?? 0);
    this.#emit({ ...frame, type: 'message' });
  }

  async #subscribed(frame) {
    const channel = this.#channels.get(frame.channel);
    if (!channel) return;
    const turn = ++channel.turn;
    channel.live = false;
    channel.held = [];
    let answer;
    try {
      answer = await this.#catchUp(channel, frame);
      if (channel.presence && !channel.members) channel.members = (await this.#ask('presence', frame)).members;
    } catch (error) {
      // What history would have told is lost to this client: it is told so, unless it is the connection that failed.
      if (!error.problem) return this.fail(1006, error.message);
      if (channel.presence && !channel.members) return this.#forget(frame.channel, error.problem);
      answer = { recovered: false, position: { epoch: frame.epoch, offset: frame.offset }, messages: [] };
    }
    if (turn !== channel.turn) return;
    this.#announce(channel, frame.channel, answer);
    for (const message of answer.messages) this.#pass(channel, { ...message, channel: frame.channel });
    channel.live = true;
    for (const message of channel.held.splice(0)) this.#pass(channel, message);
    if (channel.presence)
      this.#timers.set(`presence ${frame.channel}`, this.#settings.presencePoll, () => this.#poll(frame.channel));
    if (this.#oneByOne && [...this.#channels.values()].some((other) => !other.announced)) this.#reopen();
  }

  /** What stands between the position asked for and the one the stream begins at. */
  async #catchUp({ position, last }, { channel, epoch, offset, recovered }) {
    const start = { epoch, offset };
    if (epoch === undefined) return { position: null, messages: [] };
    if (position === null) {
      const limit = Math.min(last ?? 0, 1000);
      const found = limit ? (await this.#ask('history', { channel, limit, reverse: true })).messages : [];
      const messages = found.filter((message) => message.offset <= offset).sort((a, b) => a.offset - b.offset);
      return { position: messages.length ? { epoch, offset: messages[0].offset - 1 } : start, messages };
    }
    if (recovered === false || position.epoch !== epoch) return { recovered: false, position: start, messages: [] };
    const messages = [];
    for (let at = position.offset; at < offset; at = messages.at(-1).offset) {
      const page = (await this.#ask('history', { channel, after: at, limit: 1000 })).messages;
      if (page.length === 0) break;
      messages.push(...page);
      if (messages.length > 10_000) return { recovered: false, position: start, messages: [] };
    }
    const first = messages[0]?.offset ?? offset + 1;
    const whole = position.offset >= offset || first === position.offset + 1;
    return { recovered: whole, position: whole ? { ...position } : { epoch, offset: first - 1 }, messages };
  }

  /** Tells of the subscription where it is new or where something was lost; a mere change of streams is nobody's matter. */
  #announce(channel, name, { recovered, position }) {
    const news = !channel.announced || recovered === false;
    const asked = channel.announced ? undefined : channel.id;
    channel.announced = true;
    channel.position = position && { ...position };
    if (!news) return;
    const members = channel.presence ? channel.members : undefined;
    this.#emit({ type: 'subscribed', id: asked, channel: name, ...position, recovered, members });
  }

  #forget(name, problem) {
    const channel = this.#channels.get(name);
    this.#channels.delete(name);
    this.#emit({ ...problem, type: 'error', id: channel.id, channel: name });
    this.#reopen();
  }

  async #poll(name) {
    const channel = this.#channels.get(name);
    if (!channel) return;
    try {
      const { members } = await this.#ask('presence', { channel: name });
      const before = new Map(channel.members.map((member) => [member.connection, member]));
      channel.members = members;
      for (const member of members) {
        if (!before.delete(member.connection)) this.#emit({ type: 'join', channel: name, member });
      }
      for (const member of before.values()) this.#emit({ type: 'leave', channel: name, member });
    } catch {
      // The stream itself tells whether the connection is gone; the next poll asks again.
    }
    if (this.#channels.get(name) === channel) {
      this.#timers.set(`presence ${name}`, this.#settings.presencePoll, () => this.#poll(name));
    }
  }

  async #publish({ type, id, channel, ...body }) {
    if (this.#stopped.signal.aborted) return;
    try {
      const url = this.#url(`v1/channels/${encodeURIComponent(channel)}/publish`);
      const headers = { 'content-type': 'application/json' };
      const response = await this.#fetch(url, { method: 'POST', headers, body: JSON.stringify(body) });
      if (!response.ok) return this.#emit({ ...(await problemOf(response)), type: 'error', id, channel });
      const answer = await response.json();
      this.#emit({ ...(answer.results?.[0] ?? answer), type: 'published', id });
    } catch (error) {
      this.fail(1006, error.message); // Unanswered: it is sent again with its key.
    }
  }

  /** Throws an error with `problem` where the server refused. */
  async #ask(what, { channel, limit, after, before, reverse }) {
    const url = this.#url(`v1/channels/${encodeURIComponent(channel)}/${what}`);
    for (const [name, value] of Object.entries({ limit, after, before, reverse })) {
      if (value !== undefined && what === 'history') url.searchParams.set(name, value);
    }
    const response = await this.#fetch(url);
    if (response.ok) return response.json();
    const problem = await problemOf(response);
    throw Object.assign(new Error(problem.message), { problem });
  }

  #url(path) {
    const url = new URL(path, this.#base);
    if (this.#settings.app) url.searchParams.set('app', this.#settings.app);
    return url;
  }

  #fetch(url, { headers, signal, timeout = true, ...more } = {}) {
    const get = this.#settings.fetch ?? globalThis.fetch;
    const abort = new AbortController();
    const giveUp = () => abort.abort();
    const timer = timeout && setTimeout(giveUp, this.#settings.commandTimeout);
    for (const other of [signal, this.#stopped.signal]) {
      if (other?.aborted) giveUp();
      other?.addEventListener('abort', giveUp, { once: true, signal: abort.signal });
    }
    const authorization = this.#token ? { authorization: `Bearer ${this.#token}` } : {};
    const init = { ...more, headers: { ...authorization, ...headers }, signal: abort.signal, cache: 'no-store' };
    return get(url.href, init).finally(() => clearTimeout(timer));
  }
}

/** Reads a stream of server-sent events: `{ event, data, id }` each, and `{ comment: true }`. */
async function readEvents(body, onEvent) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  let event = {};
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    // A carriage return at the end may be the first half of a line's end.
    const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    if (rest.length > 4 << 20) throw new Error('an event of more than 4 MiB');
    for (const line of lines) {
      if (line === '') {
        if (event.data !== undefined || event.id !== undefined) onEvent({ event: 'message', ...event });
        event = {};
      } else if (line.startsWith(':')) {
        onEvent({ comment: true });
      } else {
        const [, name, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        event[name] = name === 'data' && event.data !== undefined ? `${event.data}\n${text}` : text;
      }
    }
  }
}

/** An HTTP refusal as the members of an `error` frame. */
async function problemOf(response) {
  const problem = await response.json().catch(() => ({}));
  const byStatus = {
    400: 'bad_request',
    401: 'unauthorized',
    403: 'forbidden',
    404: 'unknown_channel',
    413: 'too_large',
    429: 'rate_limited',
    503: 'unavailable',
    504: 'timeout',
  };
  const after = problem.retry_after ?? Number(response.headers.get('retry-after') ?? NaN);
  return {
    status: response.status,
    code: problem.code ?? byStatus[response.status] ?? 'internal',
    message: problem.detail ?? problem.message ?? problem.title ?? `the server answered ${response.status}`,
    channel: problem.channel,
    retry_after: Number.isFinite(after) ? after : undefined,
  };
}

/** A token, given or fetched through a callback, and when to fetch the next. */
class TokenSource {
  #token;
  #callback;
  #timeout;
  #facts;
  #reason = 'connect';
  #expires;

  constructor({ token, getToken }, timeout, facts = {}) {
    this.#token = token;
    this.#callback = getToken;
    this.#timeout = timeout;
    this.#facts = facts;
  }

  get present() {
    return Boolean(this.#callback || this.#token);
  }

  /** Whether another token can be had than the one that was refused. */
  get renewable() {
    return Boolean(this.#callback);
  }

  async get() {
    const ended = this.renewable && claims(this.#token)?.exp * 1000 <= Date.now();
    if (ended) this.drop('expiring');
    return this.#token || !this.#callback ? this.#token : this.fetch(this.#reason);
  }

  async fetch(reason) {
    const abort = new AbortController();
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error('the token callback did not answer in time')), this.#timeout);
    });
    try {
      const asked = this.#callback({ reason, signal: abort.signal, ...this.#facts });
      const token = await Promise.race([asked, late]);
      if (token != null && typeof token !== 'string') throw new Error(`the token callback gave a ${typeof token}`);
      this.#reason = 'connect';
      return (this.#token = token || undefined);
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  /** Forgets a token that the server refused, where there is a way to another. */
  drop(reason = 'refused') {
    if (!this.#callback) return;
    this.#token = undefined;
    this.#reason = reason;
  }

  /** The end in Unix seconds, as the server told it; else what the token itself says. */
  expires(seconds) {
    this.#expires = seconds ?? claims(this.#token)?.exp;
  }

  /** Milliseconds until the next token should be fetched: a minute before the end, or four fifths of the way. */
  renewIn() {
    if (!Number.isFinite(this.#expires)) return null;
    const left = Math.max(0, this.#expires * 1000 - Date.now());
    return left - Math.min(60_000, left / 5);
  }
}

/** Timers by name: setting one again replaces it. */
class Timers {
  #running = new Map();

  set(name, ms, call) {
    this.clear(name);
    const run = () => {
      this.#running.delete(name);
      call();
    };
    // A longer wait than 2^31 ms would be none at all.
    this.#running.set(name, setTimeout(run, Math.min(ms, 2 ** 31 - 1)));
  }

  has(name) {
    return this.#running.has(name);
  }

  clear(name) {
    clearTimeout(this.#running.get(name));
    this.#running.delete(name);
  }

  clearAll() {
    for (const name of [...this.#running.keys()]) this.clear(name);
  }
}

function emit(target, type, detail) {
  target.dispatchEvent(new CustomEvent(type, { detail }));
}

/** Callbacks given as options are listeners, so that one that throws is reported and disturbs nobody else. */
function listen(target, options, events) {
  for (const [option, type] of Object.entries(events)) {
    const call = options[option];
    if (call) target.addEventListener(type, (event) => call(event.detail, target));
  }
}

function messageOf({ type, ...message }) {
  return { event: 'message', ...message };
}

/** An answer as the application gets it: without the frame's own members. */
function withoutEnvelope({ type, id, ...answer }) {
  if (answer.messages) answer.messages = answer.messages.map(messageOf);
  return answer;
}

/** Where the server's paths start: `https://host/` or `https://host/prefix/`, from any of the forms people write. */
function baseOf(url) {
  const base = new URL(url ?? '/', globalThis.location?.href);
  if (base.search) throw new TypeError('give `app` and `token` as options, not in the address');
  base.protocol = base.protocol.replace(/^ws/, 'http');
  base.pathname = base.pathname.replace(/\/?(v1\/?(ws\/?)?)?$/, '/');
  base.hash = '';
  return base;
}

/** What a JWT says, unchecked: only the server can tell whether it is true. */
function claims(token) {
  try {
    const part = token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/');
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (char) => char.charCodeAt(0))));
  } catch {
    return undefined;
  }
}

/** 128 random bits; `crypto.randomUUID` is missing on pages without TLS. */
function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function openPromise() {
  const open = {};
  open.promise = new Promise((resolve, reject) => Object.assign(open, { resolve, reject }));
  return open;
}

/** Calls back when the page is looked at again, and when the network goes or comes; answers with how to stop that. */
function watchPage({ wake, online, offline }) {
  const { window, document } = globalThis;
  if (!window?.addEventListener || !document) return () => {};
  const onVisible = () => document.visibilityState === 'visible' && wake();
  window.addEventListener('online', online);
  window.addEventListener('offline', offline);
  document.addEventListener('visibilitychange', onVisible);
  return () => {
    window.removeEventListener('online', online);
    window.removeEventListener('offline', offline);
    document.removeEventListener('visibilitychange', onVisible);
  };
}
