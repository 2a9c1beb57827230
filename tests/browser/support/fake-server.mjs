/**
 * A small server of Fanwire's own protocol that does what a test tells it: cut connections, lose history, refuse tokens,
 * keep acknowledgements back, block WebSocket. It stores as the real one does, so that doubles and gaps would show.
 */
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

export class FakeServer {
  ping = 25;
  /** What clients sent, in order, and what upgrades and streams brought with them. */
  frames = [];
  upgrades = [];
  streams = [];
  /** Set by tests. */
  blockSockets = false;
  silent = false;
  swallowPublished = false;
  swallowWelcome = false;
  swallowReads = false;
  holdStreams = false;
  onFrame = () => {};
  delayPublish = () => 0;
  beforeSubscribed = () => {};
  checkToken = () => null;
  refuseSubscribe = () => null;
  refusePublish = () => null;
  tokenEnds = () => undefined;

  #http;
  #sockets = new WebSocketServer({ noServer: true, handleProtocols: () => 'fanwire.v1' });
  #connections = new Set();
  #channels = new Map();
  #ids = 0;

  static async start() {
    const server = new FakeServer();
    server.#http = createServer((request, response) => server.#onRequest(request, response));
    server.#http.on('upgrade', (request, socket, head) => server.#onUpgrade(request, socket, head));
    await new Promise((resolve) => server.#http.listen(0, '127.0.0.1', resolve));
    server.url = `http://127.0.0.1:${server.#http.address().port}`;
    return server;
  }

  async stop() {
    this.cut();
    this.#http.closeAllConnections();
    await new Promise((resolve) => this.#http.close(resolve));
  }

  get connections() {
    return this.#connections.size;
  }

  /** Breaks every connection as a network does: without a word. */
  cut() {
    for (const connection of this.#connections) connection.destroy();
    this.#connections.clear();
  }

  /** Ends every connection as the server does: a `disconnect` frame, then the close code. */
  disconnect(code, closeCode, more = {}) {
    for (const connection of [...this.#connections]) {
      connection.send({ type: 'disconnect', code, message: `told ${code}`, ...more });
      connection.end(closeCode, code);
    }
  }

  closeWith(closeCode) {
    for (const connection of [...this.#connections]) connection.end(closeCode, '');
  }

  channel(name) {
    if (!this.#channels.has(name)) {
      const history = !name.startsWith('typing:');
      this.#channels.set(name, {
        name,
        history,
        epoch: randomUUID().slice(0, 8),
        offset: 0,
        kept: [],
        keys: new Map(),
        size: 100,
      });
    }
    return this.#channels.get(name);
  }

  /** Loses a channel's history, and says so to who is subscribed if `tell`. */
  loseHistory(name, { tell = false } = {}) {
    Object.assign(this.channel(name), { epoch: randomUUID().slice(0, 8), offset: 0, kept: [] });
    if (tell)
      this.#broadcast(name, {
        type: 'subscribed',
        channel: name,
        epoch: this.channel(name).epoch,
        offset: 0,
        recovered: false,
      });
  }

  publish(name, data, { event, key, tags, except, silently } = {}) {
    const channel = this.channel(name);
    if (key && channel.keys.has(key)) return channel.keys.get(key);
    const message = {
      type: 'message',
      channel: name,
      event: event ?? 'message',
      data,
      id: `p${++this.#ids}`,
      time: Date.now(),
      tags,
    };
    if (channel.history) {
      message.offset = ++channel.offset;
      channel.kept.push(message);
      if (channel.kept.length > channel.size) channel.kept.shift();
    }
    if (key) channel.keys.set(key, message);
    if (!silently) this.#broadcast(name, message, except);
    return message;
  }

  #broadcast(name, frame, except) {
    for (const connection of this.#connections) {
      const wish = connection !== except && connection.channels.get(name);
      if (wish && (wish.presence || !['join', 'leave'].includes(frame.type))) connection.send(frame);
    }
  }

  // ---- WebSocket ----

  #onUpgrade(request, socket, head) {
    const url = new URL(request.url, this.url);
    const protocols = (request.headers['sec-websocket-protocol'] ?? '').split(/, */);
    const token = protocols.find((name) => name.startsWith('bearer.'))?.slice('bearer.'.length);
    this.upgrades.push({ token, protocols, app: url.searchParams.get('app'), path: url.pathname });
    if (this.blockSockets) return socket.destroy();
    this.#sockets.handleUpgrade(request, socket, head, (webSocket) => this.#onSocket(webSocket, token));
  }

  #onSocket(webSocket, token) {
    const connection = {
      id: `c_${++this.#ids}`,
      channels: new Map(),
      send: (frame) => this.silent || webSocket.send(JSON.stringify(frame)),
      end: (code, reason) => webSocket.close(code, reason),
      destroy: () => webSocket.terminate(),
    };
    this.#connections.add(connection);
    webSocket.on('close', () => this.#gone(connection));
    const refused = this.checkToken(token);
    if (refused) {
      connection.send({ type: 'disconnect', code: refused.code, message: 'refused', reconnect: false });
      return connection.end(refused.close, refused.code);
    }
    if (!this.swallowWelcome) {
      connection.send({
        type: 'welcome',
        connection: connection.id,
        ping: this.ping,
        expires: this.tokenEnds(token),
        server: 'fake',
      });
    }
    webSocket.on('message', (text) => {
      for (const frame of [JSON.parse(text)].flat()) this.#onFrame(connection, frame);
    });
  }

  #onFrame(connection, frame) {
    this.frames.push(frame);
    this.onFrame(frame);
    const { type, id, channel: name } = frame;
    const refuse = (refused) =>
      connection.send({ type: 'error', id, channel: name, message: `refused: ${refused.code}`, ...refused });
    if (type === 'ping') return connection.send({ type: 'pong', id });
    if (type === 'auth') return connection.send({ type: 'authenticated', id, expires: this.tokenEnds(frame.token) });
    if (type === 'unsubscribe') {
      connection.channels.delete(name);
      return connection.send({ type: 'unsubscribed', id, channel: name });
    }
    if (type === 'subscribe') {
      const refused =
        this.refuseSubscribe(frame) ?? (connection.channels.has(name) ? { code: 'already_subscribed' } : null);
      return refused ? refuse(refused) : this.#subscribe(connection, frame);
    }
    if (type === 'publish') {
      const refused = this.refusePublish(frame);
      if (refused?.close) return connection.end(refused.close, '');
      if (refused) return refuse(refused);
      const message = this.publish(name, frame.data, {
        ...frame,
        except: frame.echo === false ? connection : undefined,
      });
      if (this.swallowPublished) return;
      return connection.send({
        type: 'published',
        id,
        channel: name,
        publication: message.id,
        epoch: this.channel(name).epoch,
        offset: message.offset,
      });
    }
    if (this.swallowReads && (type === 'history' || type === 'presence')) return;
    if (type === 'history') return connection.send({ type, id, channel: name, ...this.#history(name, frame) });
    if (type === 'presence')
      return connection.send({ type, id, channel: name, members: this.#members(name), users: 0 });
    refuse({ code: 'bad_request' });
  }

  #subscribe(connection, { id, channel: name, after, last, presence }) {
    const channel = this.channel(name);
    this.beforeSubscribed(connection);
    connection.channels.set(name, { presence });
    this.join(name, { connection: connection.id, info: {} }, 'join', connection);
    const answer = { type: 'subscribed', id, channel: name, members: presence ? this.#members(name) : undefined };
    if (!channel.history) return connection.send(answer);
    let missed = last ? channel.kept.slice(-last) : [];
    if (after) {
      missed = channel.kept.filter((message) => message.offset > after.offset);
      const whole = after.epoch === channel.epoch && after.offset >= channel.offset - channel.kept.length;
      answer.recovered = whole;
      if (!whole) missed = channel.kept.slice();
    }
    connection.send({ ...answer, epoch: channel.epoch, offset: (missed[0]?.offset ?? channel.offset + 1) - 1 });
    for (const message of missed) connection.send(message);
  }

  #members(name) {
    return [...this.#connections]
      .filter((each) => each.channels.has(name))
      .map(({ id }) => ({ connection: id, info: {} }));
  }

  /** Sends what a channel keeps once more, as no server should. */
  stutter(name) {
    for (const message of this.channel(name).kept) this.#broadcast(name, message);
  }

  join(name, member, type = 'join', except = undefined) {
    this.#broadcast(name, { type, channel: name, member }, except);
  }

  #gone(connection) {
    this.#connections.delete(connection);
    for (const name of connection.channels.keys()) this.join(name, { connection: connection.id, info: {} }, 'leave');
  }

  unsubscribe(name, code) {
    this.#broadcast(name, { type: 'unsubscribed', channel: name, code, message: code });
    for (const connection of this.#connections) connection.channels.delete(name);
  }

  #history(name, { limit = 100, after = 0, before = Infinity, reverse }) {
    const channel = this.channel(name);
    let messages = channel.kept.filter(({ offset }) => offset > after && offset < before);
    messages = reverse ? messages.reverse().slice(0, limit) : messages.slice(0, limit);
    return { epoch: channel.epoch, offset: channel.offset, messages };
  }

  // ---- HTTP and event streams ----

  async #onRequest(request, response) {
    const url = new URL(request.url, this.url);
    const token = request.headers.authorization?.replace('Bearer ', '');
    const json = (status, body) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
    if (url.pathname === '/healthz') return json(200, {});
    const refused = this.checkToken(token);
    if (refused) return json(401, { code: refused.code, detail: 'refused' });
    if (url.pathname === '/v1/events') return this.#onStream(url, request, response, token, json);
    const [, name, what] = /^\/v1\/channels\/([^/]+)\/(\w+)$/.exec(url.pathname).map(decodeURIComponent);
    if (what === 'history') {
      const { limit, after, reverse } = Object.fromEntries(url.searchParams);
      return json(
        200,
        this.#history(name, { limit: Number(limit ?? 100), after: Number(after ?? 0), reverse: reverse === 'true' }),
      );
    }
    if (what === 'presence') return json(200, { members: this.#members(name), users: 0 });
    let body = '';
    for await (const part of request) body += part;
    const frame = JSON.parse(body);
    this.frames.push({ type: 'POST', channel: name, ...frame });
    await new Promise((resolve) => setTimeout(resolve, this.delayPublish(frame)));
    const refusal = this.refusePublish(frame);
    if (refusal) return json(429, refusal);
    const message = this.publish(name, frame.data, frame);
    if (this.swallowPublished) return response.destroy();
    json(200, {
      results: [{ channel: name, publication: message.id, offset: message.offset, epoch: this.channel(name).epoch }],
    });
  }

  #onStream(url, request, response, token, json) {
    const names = url.searchParams.getAll('channel');
    const resume = request.headers['last-event-id'];
    this.streams.push({ names, resume, token });
    for (const name of names) {
      const refused = this.refuseSubscribe({ channel: name });
      if (refused) return json(403, { code: refused.code, detail: 'refused' });
    }
    if (this.holdStreams) return;
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    const positions = resume ? JSON.parse(resume) : {};
    const write = (frame) => {
      if (frame.type === 'message' && frame.offset) positions[frame.channel] = frame.offset;
      const event = frame.type === 'message' ? '' : `event: ${frame.type}\n`;
      response.write(`${event}id: ${JSON.stringify(positions)}\ndata: ${JSON.stringify(frame)}\n\n`);
    };
    const connection = {
      id: `c_${++this.#ids}`,
      channels: new Map(names.map((name) => [name, {}])),
      send: write,
      end: () => response.end(),
      destroy: () => response.destroy(),
    };
    this.#connections.add(connection);
    response.on('close', () => this.#connections.delete(connection));
    for (const name of names) {
      const { epoch, offset, history, kept } = this.channel(name);
      const after = positions[name];
      write({
        type: 'subscribed',
        channel: name,
        ...(history ? { epoch, offset: after ?? offset } : {}),
        recovered: after === undefined ? undefined : true,
      });
      for (const message of kept) if (after !== undefined && message.offset > after) write(message);
    }
  }
}

/** How long a fact may take, in ms: long, since it is only waited for where something is broken, and machines are slow. */
export const DEADLINE = 60_000;

/** Waits for a fact, asking again after each turn of the event loop; fails with `what` after a deadline. */
export async function until(fact, what = 'the fact', deadline = DEADLINE) {
  const end = Date.now() + deadline;
  for (;;) {
    const found = await fact();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited ${deadline} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** An unsigned token with these claims: the fake server believes it. */
export function token(claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  return `${part({ alg: 'none' })}.${part(claims)}.x`;
}
