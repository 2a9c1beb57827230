/** The client against the real server (FANWIRE_BIN): that both read the protocol the same way. */
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { WebSocket } from 'ws';
import { Fanwire } from '../../static/fanwire.js';
import { until } from './support/fake-server.mjs';
import { Proxy } from './support/proxy.mjs';
import { Server, freeAddress } from './support/server.mjs';
import { listen, watch } from './support/story.mjs';
import { WITH_TOKENS, sign } from './support/token.mjs';

let server;
let strict;
const open = [];
let channels = 0;

before(async () => {
  [server, strict] = await Promise.all([Server.start(), Server.start({ config: WITH_TOKENS })]);
});

afterEach(async () => {
  for (const each of open.splice(0).reverse()) await (each.close ? each.close() : each.stop());
});

after(async () => {
  await Promise.all([server?.stop(), strict?.stop()]);
});

const freshChannel = () => `room:real-${++channels}`;

function connect(url, options = {}) {
  const client = watch(new Fanwire(url, { WebSocket, backoff: { first: 50, longest: 200 }, ...options }));
  open.push(client);
  return client;
}

async function cable(url) {
  const proxy = await Proxy.start(url);
  open.push(proxy);
  return proxy;
}

const seen = (subscription, count) => until(() => subscription.seen.length >= count, `${count} messages`);
const connected = (client) => until(() => client.state === 'connected', 'a connection');

for (const transports of [['websocket'], ['sse']]) {
  const by = transports[0];

  test(`${by}: a line that breaks again and again shows no gap and no double`, async () => {
    const proxy = await cable(server.url);
    const channel = freshChannel();
    const publisher = connect(server.url);
    const room = listen(connect(proxy.url, { transports }), channel);
    await room.ready;
    for (let i = 1; i <= 60; i++) {
      await publisher.publish(channel, i);
      if (i % 10 === 3) proxy.cut();
      if (i % 10 === 7) proxy.mend();
    }
    proxy.mend();
    await seen(room, 60);
    await publisher.publish(channel, 'end');
    await seen(room, 61);
    assert.deepEqual(room.seen, [...Array.from({ length: 60 }, (_, i) => i + 1), 'end']);
  });

  test(`${by}: what was acknowledged into the void is stored once`, async () => {
    const proxy = await cable(server.url);
    const channel = freshChannel();
    const room = listen(connect(proxy.url, { transports }), channel);
    const witness = listen(connect(server.url), channel);
    await Promise.all([room.ready, witness.ready]);
    proxy.deaf = true;
    const publication = room.publish('once');
    await seen(witness, 1);
    proxy.cut();
    proxy.deaf = false;
    proxy.mend();
    const { offset } = await publication;
    assert.equal(offset, 1);
    await room.publish('end');
    await Promise.all([seen(room, 2), seen(witness, 2)]);
    assert.deepEqual(room.seen, ['once', 'end']);
    assert.deepEqual(witness.seen, ['once', 'end']);
  });

  test(`${by}: the newest first, a kept position, history and presence`, async () => {
    const channel = freshChannel();
    const publisher = connect(server.url);
    for (const n of [1, 2, 3, 4, 5]) await publisher.publish(channel, n);
    const client = connect(server.url, { transports });
    const room = listen(client, channel, { last: 2, presence: true });
    await seen(room, 2);
    assert.deepEqual(room.seen, [4, 5]);
    assert.equal(room.position.offset, 5);
    const { messages, epoch } = await client.history(channel, { before: 4, limit: 2, reverse: true });
    assert.deepEqual(
      messages.map(({ data }) => data),
      [3, 2],
    );
    const later = listen(connect(server.url, { transports }), channel, { after: { epoch, offset: 2 } });
    await seen(later, 3);
    assert.deepEqual(later.seen, [3, 4, 5]);
    const { members } = await client.presence(channel);
    assert.ok(members.length >= 1);
    assert.ok(room.members.length >= 1);
  });

  test(`${by}: a refused subscription ends alone, and says why`, async () => {
    const client = connect(strict.url, { transports, token: sign() });
    const channel = freshChannel();
    const good = listen(client, channel);
    const bad = listen(client, 'secret:plans');
    await assert.rejects(bad.ready, ({ code }) => ['forbidden', 'unknown_channel'].includes(code));
    await good.ready;
    await client.publish(channel, 'still here');
    await seen(good, 1);
  });

  test(`${by}: a bad token stops the client, an ended one without a callback too`, async () => {
    for (const [token, code] of [
      [sign({ secret: 'another one that is also long enough' }), 'unauthorized'],
      [sign({ seconds: -3600 }), 'token_expired'],
    ]) {
      const client = connect(strict.url, { transports, token });
      listen(client, freshChannel());
      await until(() => client.state === 'closed', code);
      assert.equal(client.error.code, code);
    }
  });

  test(`${by}: an ended token is replaced through the callback`, async () => {
    const reasons = [];
    const getToken = async ({ reason }) => (
      reasons.push(reason),
      sign({ seconds: reasons.length === 1 ? -3600 : 3600 })
    );
    const room = listen(connect(strict.url, { transports, getToken }), freshChannel());
    await room.ready;
    assert.deepEqual(reasons, ['connect', 'refused']);
  });
}

test('a token is renewed on the same connection before it ends', async () => {
  const reasons = [];
  const getToken = async ({ reason }) => (reasons.push(reason), sign({ seconds: reasons.length === 1 ? 8 : 3600 }));
  const client = connect(strict.url, { getToken });
  const room = listen(client, freshChannel());
  await room.ready;
  const { connection } = client;
  assert.equal(client.user, 'alice');
  await until(() => reasons.length === 2, 'a renewal');
  await new Promise((resolve) => setTimeout(resolve, 4000)); // Past the first token's end: nothing must happen.
  assert.equal(client.connection, connection);
  assert.deepEqual(reasons, ['connect', 'expiring']);
  await room.publish('still here');
  await seen(room, 1);
});

test('members come and go', async () => {
  const channel = freshChannel();
  const ann = listen(connect(strict.url, { token: sign({ sub: 'ann', info: { name: 'Ann' } }) }), channel, {
    presence: true,
  });
  await ann.ready;
  const other = connect(strict.url, { token: sign({ sub: 'bob', info: { name: 'Bob' } }) });
  const bob = listen(other, channel);
  await bob.ready;
  await until(() => ann.members.some(({ user, info }) => user === 'bob' && info.name === 'Bob'), 'Bob');
  other.close();
  await until(() => ann.members.every(({ user }) => user === 'ann'), 'Bob to be gone');
});

test('an own publication without echo is not shown, not even after a break', async () => {
  const proxy = await cable(server.url);
  const channel = freshChannel();
  const room = listen(connect(proxy.url), channel);
  await room.ready;
  await room.publish('quiet', { echo: false });
  proxy.cut();
  proxy.mend();
  await connect(server.url).publish(channel, 'other');
  await seen(room, 1);
  assert.deepEqual(room.seen, ['other']);
});

test('a server that starts anew tells of the gap', async () => {
  let own = await Server.start({ listen: await freeAddress() });
  open.push({ stop: () => own.stop() });
  const client = connect(own.url);
  const room = listen(client, 'room:1');
  await room.ready;
  await room.publish('before');
  await seen(room, 1);
  const { host } = new URL(own.url);
  await own.stop();
  own = await Server.start({ listen: host });
  await seen(room, 2);
  await room.publish('after');
  await seen(room, 3);
  assert.deepEqual(room.seen, ['before', 'gap', 'after']);
});

test('what is too large is given up, and the rest goes on', async () => {
  const client = connect(server.url);
  const channel = freshChannel();
  await connected(client);
  await assert.rejects(client.publish(channel, 'x'.repeat(200_000)), { code: 'too_large' });
  await client.publish(channel, 'small');
  assert.equal((await client.history(channel)).messages.length, 1);
});

test('a burst of publications, and the return of many subscriptions, all come through', async () => {
  const proxy = await cable(server.url);
  const client = connect(proxy.url, { maxQueued: 400 });
  const channel = freshChannel();
  const offsets = await Promise.all(Array.from({ length: 250 }, (_, i) => client.publish(channel, i)));
  assert.deepEqual(
    offsets.map(({ offset }) => offset),
    Array.from({ length: 250 }, (_, i) => i + 1),
  );
  const many = Array.from({ length: 400 }, (_, i) => listen(client, `${channel}-${i}`));
  await Promise.all(many.map(({ ready }) => ready));
  proxy.cut();
  proxy.mend();
  await until(() => client.states.includes('waiting') && many.every(({ state }) => state === 'subscribed'), 'all');
  await Promise.all(many.map((each, i) => each.publish(i)));
  await until(() => many.every(({ seen }, i) => seen.length === 1 && seen[0] === i), 'one publication each');
});
