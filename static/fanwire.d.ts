/** Types of the browser client of Fanwire; see `fanwire.js` for what it promises. */

/** Codes of refusals; the server's own, and `closed` where this client was closed. A later server may know more. */
export type ErrorCode =
  | 'bad_request' | 'unauthorized' | 'token_expired' | 'token_revoked' | 'forbidden' | 'unknown_channel' | 'already_subscribed'
  | 'not_subscribed' | 'history_disabled' | 'presence_disabled' | 'limit_exceeded' | 'rate_limited' | 'too_large'
  | 'unknown_method' | 'upstream_error' | 'timeout' | 'unavailable' | 'internal' | 'closed'
  | (string & {});

/** Why something failed. */
export class FanwireError extends Error {
  constructor(
    code: ErrorCode,
    message?: string,
    facts?: { channel?: string; retryAfter?: number; key?: string; closeCode?: number; cause?: unknown },
  );
  readonly code: ErrorCode;
  readonly channel?: string;
  /** Seconds after which it may be tried again, where the server said so. */
  readonly retryAfter?: number;
  /** The publication's idempotency key: publish again with it, and it is stored once. */
  readonly key?: string;
  /** The WebSocket close code, where the connection ended. */
  readonly closeCode?: number;
  /** Whether the same may succeed later, unchanged. */
  get temporary(): boolean;
}

/** A place in a channel's history. */
export interface Position {
  epoch: string;
  offset: number;
}

/** One publication. Numbers in `data` beyond 2^53 lose digits, as everywhere in JavaScript. */
export interface Message<Data = any> {
  channel: string;
  /** The publication's name; `message` where none was given. */
  event: string;
  data: Data;
  id: string;
  /** Milliseconds since 1970. */
  time: number;
  /** Only in channels with history. */
  offset?: number;
  /** Only where the namespace shows publishers. */
  from?: { user?: string; connection?: string };
  tags?: Record<string, string>;
}

/** One connection in a channel's presence. */
export interface Member<Info = any> {
  connection: string;
  user?: string;
  info?: Info;
}

export type ClientState = 'idle' | 'connecting' | 'connected' | 'waiting' | 'closed';
export type Transport = 'websocket' | 'sse';

export interface StateChange {
  state: ClientState;
  previous: ClientState;
  transport: Transport | null;
  /** Why the last connection ended; null while all is well. */
  error: FanwireError | null;
  /** With `waiting`: milliseconds until the next try. */
  retryIn?: number;
  /** With `connecting` and `waiting`: tries since the last good connection. */
  attempt?: number;
  /** With `connected`. */
  connection?: string;
  /** With `connected`, where not anonymous. */
  user?: string;
}

export interface TokenRequest {
  /** `connect`: the first, `expiring`: the present one ends soon, `refused`: the server did not take the last one. */
  reason: 'connect' | 'expiring' | 'refused';
  /** The channel that it is for, where it is a subscription token. */
  channel?: string;
  /** Aborted when nobody waits for the answer any more. */
  signal: AbortSignal;
}

/** Answers with a token; nothing means anonymous. One that throws is called again, with back-off. */
export type TokenCallback = (request: TokenRequest) => Promise<string | null | undefined> | string | null | undefined;

export interface ClientOptions {
  /** A token that is never renewed: for what lives shorter than the token. */
  token?: string;
  /** Called for the first token, before one ends, and after one was refused. */
  getToken?: TokenCallback;
  /** The app's public key; left out, the only app there is. */
  app?: string;
  /** In order of preference; `['websocket', 'sse']` by default. */
  transports?: Transport[];
  /** Connect without being told to; true by default. */
  autoConnect?: boolean;
  /** Waits between tries, in milliseconds: at most `first`, doubled each time up to `longest`. 500 and 20,000. */
  backoff?: { first?: number; longest?: number };
  /** Milliseconds from opening a connection to the server's welcome; 10,000. */
  openTimeout?: number;
  /** Milliseconds for the answer to a command; 10,000. */
  commandTimeout?: number;
  /** Milliseconds for the token callback; 15,000. */
  tokenTimeout?: number;
  /** Milliseconds for the answer to a ping; 10,000. */
  pongTimeout?: number;
  /** Milliseconds that a publication may take with all retries; 30,000, at most 240,000. */
  publishDeadline?: number;
  /**
   * Frames that may be sent at once, and each second; 150. Keep it below the server's `frames_per_connection` (200).
   */
  framesPerSecond?: number;
  /** Publications that may wait; 256. */
  maxQueued?: number;
  /** Their size together, in characters of JSON; 1,048,576. One alone may always wait. */
  maxQueuedBytes?: number;
  /** For Node before 22, where there is no global one: the `ws` package's. */
  WebSocket?: new (url: string, protocols?: string[]) => unknown;
  /** Instead of the global one, for the event stream and what goes with it. */
  fetch?: typeof fetch;
  onState?: (change: StateChange, client: Fanwire) => void;
  onError?: (error: FanwireError, client: Fanwire) => void;
}

export interface PublishOptions {
  /** The publication's name. */
  event?: string;
  /** The idempotency key, at most 64 bytes; a random one by default. */
  key?: string;
  /** False: not to this connection. */
  echo?: boolean;
  tags?: Record<string, string>;
  /** Milliseconds, with all retries. */
  deadline?: number;
}

export interface Published {
  channel: string;
  /** The publication's id. */
  publication: string;
  key: string;
  /** Only in channels with history, like `offset`. */
  epoch?: string;
  offset?: number;
}

export interface Presence<Info = any> {
  channel: string;
  members: Member<Info>[];
  users: number;
}

export interface History<Data = any> {
  channel: string;
  epoch: string;
  offset: number;
  messages: Message<Data>[];
}

export interface HistoryOptions {
  /** At most 1000. */
  limit?: number;
  /** Offsets, exclusive. */
  after?: number;
  before?: number;
  /** Newest first. */
  reverse?: boolean;
}

export interface Subscribed {
  channel: string;
  epoch?: string;
  offset?: number;
  /** With a position: whether nothing is missing. */
  recovered?: boolean;
  /** Whether the channel keeps history. Where not, each further `subscribed` means that something may be missing. */
  history: boolean;
}

export interface Gap {
  channel: string;
  /** The last publication seen before. */
  before: Position;
  /** Where it goes on: absent where the channel keeps history no more. */
  epoch?: string;
  offset?: number;
  recovered?: boolean;
}

interface ClientEvents {
  state: CustomEvent<StateChange>;
  error: CustomEvent<FanwireError>;
  message: CustomEvent<Message>;
}

interface SubscriptionEvents<Data, Info> {
  message: CustomEvent<Message<Data>>;
  subscribed: CustomEvent<Subscribed>;
  /** Something is missing: reload what the messages built. What history still has follows as messages. */
  gap: CustomEvent<Gap>;
  join: CustomEvent<Member<Info>>;
  leave: CustomEvent<Member<Info>>;
  members: CustomEvent<Member<Info>[]>;
  error: CustomEvent<FanwireError>;
  unsubscribed: CustomEvent<FanwireError>;
}

export interface SubscribeOptions<Data = any, Info = any> {
  /** The newest n first. */
  last?: number;
  /** Resume after this position. */
  after?: Position;
  /** Keep `members`. */
  presence?: boolean;
  /** A token for this channel alone, fixed or asked for. Needs WebSocket. */
  token?: string;
  getToken?: TokenCallback;
  onMessage?: (message: Message<Data>, subscription: Subscription<Data, Info>) => void;
  onSubscribed?: (facts: Subscribed, subscription: Subscription<Data, Info>) => void;
  onGap?: (gap: Gap, subscription: Subscription<Data, Info>) => void;
  onJoin?: (member: Member<Info>, subscription: Subscription<Data, Info>) => void;
  onLeave?: (member: Member<Info>, subscription: Subscription<Data, Info>) => void;
  onMembers?: (members: Member<Info>[], subscription: Subscription<Data, Info>) => void;
  onError?: (error: FanwireError, subscription: Subscription<Data, Info>) => void;
  onUnsubscribed?: (reason: FanwireError, subscription: Subscription<Data, Info>) => void;
}

/** One client: one connection at a time, its subscriptions and what waits to be published. */
export class Fanwire extends EventTarget {
  /** `url`: the server's address, `https://host` or `wss://host/v1/ws` alike; this page's own where left out. */
  constructor(url?: string | URL | null, options?: ClientOptions);
  constructor(options: ClientOptions);
  get state(): ClientState;
  /** Why the last connection ended or could not be made; null while all is well. */
  get error(): FanwireError | null;
  /** This connection's id, while connected by WebSocket. */
  get connection(): string | undefined;
  /** The token's `sub`, while connected and not anonymous. */
  get user(): string | undefined;
  get transport(): Transport | null;
  /** Connects after `close()` or a stop, with `autoConnect: false`, or at once instead of after the present wait. */
  connect(): void;
  /** Ends the connection; what waits fails with `closed`. */
  close(): void;
  /** Keeps `channel` subscribed over reconnects. Throws `already_subscribed` where it is. */
  subscribe<Data = any, Info = any>(channel: string, options?: SubscribeOptions<Data, Info>): Subscription<Data, Info>;
  subscription<Data = any, Info = any>(channel: string): Subscription<Data, Info> | undefined;
  /** Resolves when the server has it; stored once, however often it is sent. */
  publish(channel: string, data: unknown, options?: PublishOptions): Promise<Published>;
  presence<Info = any>(channel: string): Promise<Presence<Info>>;
  history<Data = any>(channel: string, options?: HistoryOptions): Promise<History<Data>>;

  addEventListener<Type extends keyof ClientEvents>(
    type: Type,
    listener: (event: ClientEvents[Type]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** One channel, kept subscribed. Made by `client.subscribe`. */
export class Subscription<Data = any, Info = any> extends EventTarget {
  private constructor();
  readonly channel: string;
  get state(): 'pending' | 'subscribed' | 'unsubscribed';
  /** The last publication seen; null without history. */
  get position(): Position | null;
  /** Whether the channel keeps history; undefined until the server has said so. */
  get history(): boolean | undefined;
  /** Who is here; needs `presence: true`. */
  get members(): Member<Info>[];
  /** Resolves with the first `subscribed`; rejects where the subscription is refused or ended before. */
  get ready(): Promise<this>;
  publish(data: Data, options?: PublishOptions): Promise<Published>;
  unsubscribe(): void;

  addEventListener<Type extends keyof SubscriptionEvents<Data, Info>>(
    type: Type,
    listener: (event: SubscriptionEvents<Data, Info>[Type]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** What a client does after a close code: `again` with back-off, `renew` the token first, nothing `refused` again, `stop`. */
export function verdict(code: number, disconnect?: { reconnect?: boolean } | null): 'again' | 'renew' | 'refused' | 'stop';

/** Milliseconds before the `attempt`-th try, counted from 0: full jitter. */
export function backoff(attempt: number, times?: { first: number; longest: number }, random?: () => number): number;
