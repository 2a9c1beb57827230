/** Stories of `static/fanwire.js` against a fake server that fails in every way the protocol allows. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import { WebSocket } from 'ws';
import { Fanwire, FanwireError, backoff, verdict } from '../../static/fanwire.js';
import { FakeServer, token, until } from './support/fake-server.mjs';
import { listen, watch } from './support/story.mjs';

let server;
let clients = [];

beforeEach(async () => {
  server = await FakeServer.start();
});

afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  await server.stop();
});

const QUICK = { backoff: { first: 10, longest: 50 } };

function connect(options = {}) {
  const client = watch(new Fanwire(server.url, { WebSocket, ...QUICK, ...options }));
  clients.push(client);
  return client;
}

const connected = (client) => until(() => client.state === 'connected', 'a connection');
const seen = (subscription, count) =>
  until(() => subscription.seen.length >= count, `${count} messages, not ${subscription.seen}`);
const sent = (type) => server.frames.filter((frame) => frame.type === type);

/** Awaits everything that the connection of `subscription` had under way. */
async function settled(subscription) {
  await subscription.publish('settled');
  await until(() => subscription.seen.at(-1) === 'settled');
  return subscription.seen;
}

for (const transports of [['websocket'], ['sse']]) {
  const by = transports[0];

  test(`${by}: messages arrive, and publishing answers with the position`, async () => {
    const room = listen(connect({ transports }), 'room:1');
    await room.ready;
    const published = await room.publish({ text: 'hi' }, { event: 'chat', tags: { lang: 'en' } });
    await seen(room, 1);
    assert.deepEqual(room.seen, [{ text: 'hi' }]);
    assert.equal(published.offset, 1);
    assert.deepEqual(room.position, { epoch: published.epoch, offset: 1 });
    assert.equal(room.history, true);
  });

  test(`${by}: a connection that breaks again and again shows no gap and no double`, async () => {
    const room = listen(connect({ transports }), 'room:1');
    await room.ready;
    for (let i = 1; i <= 60; i++) {
      server.publish('room:1', i);
      if (i % 7 === 0) server.cut();
      if (i % 5 === 0) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await seen(room, 60);
    assert.deepEqual(
      room.seen,
      Array.from({ length: 60 }, (_, i) => i + 1),
    );
  });

  test(`${by}: what comes twice is shown once`, async () => {
    const room = listen(connect({ transports }), 'room:1');
    await room.ready;
    for (const n of [1, 2, 3]) server.publish('room:1', n);
    server.stutter('room:1');
    assert.deepEqual(await settled(room), [1, 2, 3, 'settled']);
  });

  test(`${by}: publications made together keep their order`, async () => {
    const room = listen(connect({ transports }), 'room:1');
    await room.ready;
    server.delayPublish = ({ data }) => 20 - 5 * data;
    await Promise.all([1, 2, 3].map((n) => room.publish(n)));
    await seen(room, 3);
    assert.deepEqual(room.seen, [1, 2, 3]);
  });

  test(`${by}: the newest come first with \`last\`, and \`after\` resumes a kept position`, async () => {
    for (let i = 1; i <= 5; i++) server.publish('room:1', i);
    const room = listen(connect({ transports }), 'room:1', { last: 2 });
    await seen(room, 2);
    server.publish('room:1', 6);
    await seen(room, 3);
    assert.deepEqual(room.seen, [4, 5, 6]);
    const { epoch } = room.position;
    const other = listen(connect({ transports }), 'room:1', { after: { epoch, offset: 3 } });
    await seen(other, 3);
    assert.deepEqual(other.seen, [4, 5, 6]);
  });

  test(`${by}: lost history is told as a gap before what is left`, async () => {
    const client = connect({ transports });
    const room = listen(client, 'room:1');
    await room.ready;
    server.publish('room:1', 'before');
    await seen(room, 1);
    client.close();
    server.loseHistory('room:1');
    server.publish('room:1', 'after');
    client.connect();
    await seen(room, 2);
    assert.deepEqual(room.seen.slice(0, 2), ['before', 'gap']);
    await connected(client);
    server.publish('room:1', 'later');
    await until(() => room.seen.at(-1) === 'later');
    assert.equal(room.seen.filter((each) => each === 'gap').length, 1);
  });

  test(`${by}: a publication whose answer was lost is sent again with its key and stored once`, async () => {
    const client = connect({ transports });
    const room = listen(client, 'room:1');
    await room.ready;
    server.swallowPublished = true;
    const promise = client.publish('room:1', 'once');
    await until(() => server.channel('room:1').offset === 1);
    server.swallowPublished = false;
    server.cut();
    const published = await promise;
    assert.equal(published.offset, 1);
    await seen(room, 1);
    await client.publish('room:1', 'end');
    await seen(room, 2);
    assert.deepEqual(room.seen, ['once', 'end']);
    assert.equal(server.channel('room:1').offset, 2);
  });

  test(`${by}: a refused publication says why, and carries what a retry needs`, async () => {
    const client = connect({ transports });
    await connected(client);
    server.refusePublish = () => ({ code: 'rate_limited', message: 'slow down', retry_after: 1.5 });
    const error = await client.publish('room:1', 'x').catch((error) => error);
    assert.ok(error instanceof FanwireError);
    assert.equal(error.code, 'rate_limited');
    assert.equal(error.retryAfter, 1.5);
    assert.equal(error.temporary, true);
    server.refusePublish = () => null;
    await client.publish('room:1', 'x', { key: error.key });
  });

  test(`${by}: history and presence are read`, async () => {
    const client = connect({ transports });
    for (let i = 1; i <= 3; i++) server.publish('room:1', i);
    const room = listen(client, 'room:1', { presence: true });
    await room.ready;
    const { messages, offset } = await client.history('room:1', { limit: 2, reverse: true });
    assert.deepEqual(
      messages.map(({ data }) => data),
      [3, 2],
    );
    assert.equal(offset, 3);
    assert.equal((await client.presence('room:1')).members.length, 1);
    assert.equal(room.members.length, 1);
  });

  test(`${by}: a refused subscription ends alone`, async () => {
    server.refuseSubscribe = ({ channel }) => (channel === 'room:secret' ? { code: 'forbidden' } : null);
    const client = connect({ transports });
    const good = listen(client, 'room:1');
    const bad = listen(client, 'room:secret');
    await assert.rejects(bad.ready, { code: 'forbidden' });
    assert.equal(bad.state, 'unsubscribed');
    await good.ready;
    server.publish('room:1', 'still here');
    await seen(good, 1);
    assert.equal(client.subscription('room:secret'), undefined);
  });

  test(`${by}: what an expired token ends goes on with a new one`, async () => {
    let issued = 0;
    const reasons = [];
    const getToken = async ({ reason }) => (reasons.push(reason), token({ sub: 'ann', n: ++issued }));
    let newest = null;
    server.checkToken = (given) => (newest && given !== newest ? { code: 'token_expired', close: 4200 } : null);
    const client = connect({ transports, getToken });
    const room = listen(client, 'room:1');
    await room.ready;
    newest = token({ sub: 'ann', n: 2 });
    server.cut();
    server.publish('room:1', 'missed');
    await seen(room, 1);
    assert.deepEqual(reasons, ['connect', 'refused']);
  });

  test(`${by}: unsubscribing and subscribing again starts afresh`, async () => {
    const client = connect({ transports });
    const first = listen(client, 'room:1');
    await first.ready;
    first.unsubscribe();
    const second = listen(client, 'room:1');
    await second.ready;
    server.publish('room:1', 'for the second');
    await seen(second, 1);
    assert.deepEqual(first.seen, []);
    assert.deepEqual(second.seen, ['for the second']);
  });
}

test('a publication made without a connection waits for one, in order', async () => {
  const client = connect({ autoConnect: false });
  const promises = [1, 2, 3].map((n) => client.publish('room:1', n));
  client.connect();
  const offsets = (await Promise.all(promises)).map(({ offset }) => offset);
  assert.deepEqual(offsets, [1, 2, 3]);
});

test('a publication that finds no connection in time was not sent, one without an answer may have been', async () => {
  const client = connect({ autoConnect: false });
  await assert.rejects(client.publish('room:1', 1, { deadline: 20 }), { code: 'unavailable' });
  server.swallowPublished = true;
  client.connect();
  await connected(client);
  await assert.rejects(client.publish('room:1', 2, { deadline: 50 }), { code: 'timeout' });
});

test('the queue has a bound, by number and by bytes', async () => {
  const client = connect({ autoConnect: false, maxQueued: 2, maxQueuedBytes: 1000 });
  const waiting = [client.publish('room:1', 1), client.publish('room:1', 'x'.repeat(500))];
  await assert.rejects(client.publish('room:1', 3), { code: 'limit_exceeded' });
  client.connect();
  await Promise.all(waiting);
  client.close();
  const other = connect({ autoConnect: false, maxQueuedBytes: 1000 });
  other.publish('room:1', 'x'.repeat(500)).catch(() => {});
  await assert.rejects(other.publish('room:1', 'x'.repeat(500)), { code: 'limit_exceeded' });
});

test('publications that piled up wait for a rate limit, in order', async () => {
  const client = connect({ autoConnect: false });
  const promises = [1, 2, 3, 4].map((n) => client.publish('room:1', n));
  let refusals = 0;
  server.refusePublish = () =>
    server.channel('room:1').offset >= 2 && refusals++ < 2 ? { code: 'rate_limited', retry_after: 0.2 } : null;
  const before = Date.now();
  client.connect();
  await Promise.all(promises);
  assert.ok(Date.now() - before >= 190, 'not before the server said');
  assert.deepEqual(
    server.channel('room:1').kept.map(({ data }) => data),
    [1, 2, 3, 4],
  );
  assert.equal(refusals >= 2, true);
});

test('a question whose connection broke is asked again on the next', async () => {
  const client = connect();
  await connected(client);
  server.publish('room:1', 1);
  server.swallowReads = true;
  const history = client.history('room:1');
  const presence = client.presence('room:1');
  await until(() => sent('presence').length === 1);
  server.swallowReads = false;
  server.cut();
  assert.equal((await history).messages[0].data, 1);
  assert.deepEqual((await presence).members, []);
});

test('what still comes for an ended subscription is not taken for the next one', async () => {
  const client = connect();
  const first = listen(client, 'room:1');
  await first.ready;
  server.publish('room:1', 1);
  await seen(first, 1);
  first.unsubscribe();
  const straggler = {
    type: 'message',
    channel: 'room:1',
    event: 'message',
    data: 'straggler',
    id: 'p0',
    offset: 1,
    time: 0,
  };
  server.beforeSubscribed = (connection) => connection.send(straggler);
  const second = listen(client, 'room:1');
  await second.ready;
  assert.deepEqual(await settled(second), ['settled']);
});

test('what cannot be JSON, or is nothing, is refused at once', async () => {
  const client = connect();
  const circle = {};
  circle.circle = circle;
  await assert.rejects(client.publish('room:1', circle), { code: 'bad_request' });
  await assert.rejects(client.publish('room:1'), { code: 'bad_request' });
});

test('the close-code table is followed exactly', () => {
  const table = {
    1000: 'stop',
    1001: 'again',
    1002: 'refused',
    1003: 'refused',
    1005: 'again',
    1006: 'again',
    1007: 'refused',
    1009: 'refused',
    1011: 'again',
    4000: 'again',
    4001: 'again',
    4002: 'again',
    4003: 'again',
    4099: 'again',
    4100: 'stop',
    4101: 'stop',
    4102: 'stop',
    4103: 'stop',
    4104: 'stop',
    4199: 'stop',
    4200: 'renew',
    4201: 'renew',
    4299: 'renew',
  };
  for (const [code, expected] of Object.entries(table)) assert.equal(verdict(Number(code)), expected, code);
  assert.equal(verdict(4001, { reconnect: false }), 'stop');
  assert.equal(verdict(1000, { reconnect: true }), 'again');
  assert.equal(verdict(4101, { reconnect: true }), 'stop');
  assert.equal(verdict(4200, { reconnect: false }), 'renew');
});

test('back-off doubles up to its longest, anywhere between nothing and the whole', () => {
  const times = { first: 500, longest: 20_000 };
  assert.deepEqual(
    [0, 1, 5, 6, 1000].map((attempt) => backoff(attempt, times, () => 1)),
    [500, 1000, 16_000, 20_000, 20_000],
  );
  assert.equal(
    backoff(3, times, () => 0),
    0,
  );
});

test('a draining server is returned to after as long as it said, and no hurry shortens that', async () => {
  const client = connect();
  const room = listen(client, 'room:1');
  await room.ready;
  let waiting;
  client.addEventListener('state', ({ detail }) => detail.state === 'waiting' && (waiting = detail));
  const before = Date.now();
  server.disconnect('draining', 1001, { reconnect: true, delay: 0.3 });
  await until(() => waiting);
  assert.equal(waiting.retryIn, 300);
  assert.equal(client.error.code, 'draining');
  server.publish('room:1', 'meanwhile');
  await seen(room, 1);
  assert.ok(Date.now() - before >= 290);
  assert.equal(client.error, null);
});

test('codes 4100 to 4199 stop, and say why; connect() starts again', async () => {
  const client = connect();
  const room = listen(client, 'room:1');
  await room.ready;
  server.swallowPublished = true;
  const publication = client.publish('room:1', 1).catch((error) => error);
  await until(() => server.channel('room:1').offset === 1);
  server.disconnect('forbidden', 4101, { reconnect: false });
  await until(() => client.state === 'closed');
  assert.equal(client.error.code, 'forbidden');
  assert.equal(client.error.closeCode, 4101);
  assert.equal((await publication).code, 'forbidden');
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(server.upgrades.length, 1);
  client.connect();
  await connected(client);
});

test('a bad token at the door ends it, an expired one without a callback too', async () => {
  server.checkToken = () => ({ code: 'unauthorized', close: 4100 });
  const client = connect({ token: 'a.b.c' });
  await until(() => client.state === 'closed');
  assert.equal(server.upgrades[0].token, 'a.b.c');
  server.checkToken = () => ({ code: 'token_expired', close: 4200 });
  const other = connect({ token: 'a.b.c' });
  await until(() => other.state === 'closed');
  assert.equal(other.error.code, 'token_expired');
});

test('a publication too large for the server is given up, and the others are not', async () => {
  const client = connect();
  await connected(client);
  server.refusePublish = ({ data }) => (data.length > 100 ? { close: 1009 } : null);
  const large = client.publish('room:1', 'x'.repeat(200));
  const small = client.publish('room:1', 'small');
  await assert.rejects(large, { code: 'too_large', closeCode: 1009 });
  await small;
  assert.equal(sent('publish').filter(({ data }) => data.length > 100).length, 1);
});

test('a server that calls every frame broken is left alone in the end', async () => {
  const client = connect();
  client.addEventListener(
    'state',
    ({ detail }) => detail.state === 'connected' && setTimeout(() => server.closeWith(1002)),
  );
  await until(() => client.state === 'closed');
  assert.equal(client.states.filter((state) => state === 'connected').length, 3);
});

test('a token is renewed before it ends, on the same connection', async () => {
  const ends = Math.floor(Date.now() / 1000) + 6;
  server.tokenEnds = (given) => JSON.parse(Buffer.from(given.split('.')[1], 'base64url')).exp;
  const reasons = [];
  const getToken = async ({ reason }) => (
    reasons.push(reason),
    token({ sub: 'ann', exp: reasons.length === 1 ? ends : ends + 3600 })
  );
  const client = connect({ getToken });
  await connected(client);
  const [auth] = await until(() => sent('auth').length && sent('auth'));
  assert.ok(Date.now() < ends * 1000, 'before the end');
  assert.equal(JSON.parse(Buffer.from(auth.token.split('.')[1], 'base64url')).exp, ends + 3600);
  assert.deepEqual(reasons, ['connect', 'expiring']);
  assert.equal(server.upgrades.length, 1);
});

test('a token callback that fails is asked again, and says so', async () => {
  let calls = 0;
  const getToken = async () => {
    if (++calls < 3) throw new Error('login is down');
    return token({ sub: 'ann' });
  };
  const errors = [];
  const client = connect({ getToken, onError: (error) => errors.push(error.message) });
  await connected(client);
  assert.deepEqual(errors, ['no token: login is down', 'no token: login is down']);
});

test('a subscription with a token of its own asks for another when that one ends', async () => {
  const calls = [];
  const getToken = async ({ channel, reason }) => (calls.push([channel, reason]), token({ channel, n: calls.length }));
  const room = listen(connect(), 'room:1', { getToken });
  await room.ready;
  server.publish('room:1', 1);
  await seen(room, 1);
  server.unsubscribe('room:1', 'token_expired');
  server.publish('room:1', 2);
  await seen(room, 2);
  assert.deepEqual(room.seen, [1, 2]);
  assert.deepEqual(calls, [
    ['room:1', 'connect'],
    ['room:1', 'refused'],
  ]);
});

test('a subscription refused for now is asked for again', async () => {
  let refusals = 0;
  server.refuseSubscribe = () => (refusals++ < 2 ? { code: 'rate_limited', retry_after: 0.02 } : null);
  const room = listen(connect(), 'room:1');
  await room.ready;
  assert.equal(refusals, 3);
});

test('an unasked `subscribed` with lost history is a gap', async () => {
  const room = listen(connect(), 'room:1');
  await room.ready;
  server.publish('room:1', 'before');
  await seen(room, 1);
  server.loseHistory('room:1', { tell: true });
  server.publish('room:1', 'after');
  await seen(room, 3);
  assert.deepEqual(room.seen, ['before', 'gap', 'after']);
  assert.equal(room.position.offset, 1);
});

test('a channel without history goes on after a break, without what was missed', async () => {
  const typing = listen(connect(), 'typing:1');
  const times = [];
  typing.addEventListener('subscribed', ({ detail }) => times.push(detail.history));
  await typing.ready;
  server.cut();
  server.publish('typing:1', 'missed');
  await until(() => times.length === 2);
  server.publish('typing:1', 'seen');
  await seen(typing, 1);
  assert.deepEqual(typing.seen, ['seen']);
  assert.deepEqual(times, [false, false]);
  assert.equal(typing.position, null);
});

test('an own publication without echo is not shown, not even by a resumed subscription', async () => {
  const client = connect();
  const room = listen(client, 'room:1');
  await room.ready;
  await room.publish('quiet', { echo: false });
  server.swallowPublished = true;
  const unanswered = room.publish('quiet too', { echo: false });
  await until(() => server.channel('room:1').offset === 2);
  server.swallowPublished = false;
  server.cut();
  await unanswered;
  server.publish('room:1', 'other');
  await seen(room, 1);
  assert.deepEqual(room.seen, ['other']);
});

test('members are kept by joins and leaves', async () => {
  const room = listen(connect(), 'room:1', { presence: true });
  const changes = [];
  room.addEventListener('join', ({ detail }) => changes.push(`+${detail.connection}`));
  room.addEventListener('leave', ({ detail }) => changes.push(`-${detail.connection}`));
  await room.ready;
  server.join('room:1', { connection: 'c_other', user: 'bob', info: {} });
  await until(() => room.members.length === 2);
  server.join('room:1', { connection: 'c_other' }, 'leave');
  await until(() => room.members.length === 1);
  assert.deepEqual(changes, ['+c_other', '-c_other']);
});

test('silence is broken by a ping, and a server that stays silent is left', async () => {
  server.ping = 0.1;
  const client = connect({ pongTimeout: 3000 });
  await connected(client);
  await until(() => sent('ping').length >= 2, 'two pings');
  assert.equal(client.state, 'connected');
  server.silent = true;
  await until(() => client.states.includes('waiting'));
  server.silent = false;
  await connected(client);
});

test('a socket that opens and never says welcome is given up', async () => {
  server.swallowWelcome = true;
  const client = connect({ openTimeout: 50, transports: ['websocket'] });
  await until(() => server.upgrades.length >= 2, 'a second try');
  assert.equal(client.state === 'connected', false);
});

test('where WebSocket is blocked the event stream takes over', async () => {
  server.blockSockets = true;
  const client = connect({ token: token({ sub: 'ann' }), app: 'default' });
  const room = listen(client, 'room:1');
  await room.ready;
  assert.equal(client.transport, 'sse');
  assert.equal(server.upgrades.length, 2);
  assert.equal(server.streams[0].token, token({ sub: 'ann' }));
  await client.publish('room:1', 1);
  await seen(room, 1);
  server.cut();
  server.publish('room:1', 2);
  await seen(room, 2);
  assert.deepEqual(room.seen, [1, 2]);
  assert.ok(server.streams.at(-1).resume, 'resumed by Last-Event-ID');
  assert.equal(client.transport, 'sse');
  assert.equal(server.upgrades.length, 2, 'what worked is kept: WebSocket is not tried again');
});

test('an event stream whose last channel was left before it opened is no failure', async () => {
  const client = connect({ transports: ['sse'], openTimeout: 100 });
  await connected(client);
  server.holdStreams = true;
  const room = listen(client, 'room:1');
  await until(() => server.streams.length === 1, 'a stream');
  room.unsubscribe();
  await new Promise((resolve) => setTimeout(resolve, 200)); // Past the time for opening: nothing must happen.
  assert.deepEqual(client.states, ['connecting', 'connected']);
});

test('many subscriptions at once stay below the rate that the server allows', async () => {
  const before = performance.now();
  const client = connect({ framesPerSecond: 50 });
  const times = [];
  server.onFrame = () => times.push(performance.now() - before);
  const many = Array.from({ length: 75 }, (_, i) => listen(client, `room:${i}`));
  await Promise.all(many.map(({ ready }) => ready));
  assert.equal(times.length, 75);
  // A second's worth at once, then as they come: however late they arrive, never sooner.
  for (const [n, ms] of times.entries()) assert.ok(n < 50 + (ms / 1000) * 50, `frame ${n} came after ${ms} ms`);
});

test('a WebSocket that worked before is not given up for the event stream', async () => {
  const client = connect();
  await connected(client);
  server.blockSockets = true;
  server.cut();
  await until(() => server.upgrades.length > 5, 'several tries');
  assert.equal(server.streams.length, 0);
  server.blockSockets = false;
  await connected(client);
  assert.equal(client.transport, 'websocket');
});

test('a callback that throws is reported and stops nothing', async () => {
  const reported = [];
  process.setUncaughtExceptionCaptureCallback((error) => reported.push(error.message));
  const onMessage = () => {
    throw new Error('the application broke');
  };
  const room = listen(connect(), 'room:1', { onMessage });
  await room.ready;
  server.publish('room:1', 1);
  server.publish('room:1', 2);
  await seen(room, 2);
  await until(() => reported.length === 2);
  process.setUncaughtExceptionCaptureCallback(null);
});

test('close ends everything that waits, and a second subscription to a channel is refused', async () => {
  const client = connect({ autoConnect: false });
  const waiting = client.publish('room:1', 1);
  const room = listen(client, 'room:1');
  assert.throws(() => client.subscribe('room:1'), { code: 'already_subscribed' });
  const history = client.history('room:1');
  client.close();
  await assert.rejects(waiting, { code: 'closed' });
  await assert.rejects(history, { code: 'closed' });
  await assert.rejects(client.publish('room:1', 1), { code: 'closed' });
  assert.equal(room.state, 'pending');
});

test('an address may be written in every usual way', async () => {
  for (const path of ['', '/', '/v1/ws', '/v1/ws/']) {
    const client = new Fanwire(server.url.replace('http', 'ws') + path, { WebSocket });
    clients.push(client);
    await connected(client);
  }
  assert.deepEqual(new Set(server.upgrades.map(({ path }) => path)), new Set(['/v1/ws']));
  assert.throws(() => new Fanwire(`${server.url}?token=x`), TypeError);
});
