/**
 * Stories of the demo chat in Chromium, against the real server (FANWIRE_BIN). Pictures stay in `artifacts/`;
 * FANWIRE_PICTURE=docs/chat.png writes the one of the README.
 */
import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { Person, openBrowser } from './support/person.mjs';
import { Proxy } from './support/proxy.mjs';
import { Server, freeAddress } from './support/server.mjs';
import { WITH_TOKENS, sign } from './support/token.mjs';

let browser;
let server;
const open = [];
let rooms = 0;

before(async () => {
  browser = await openBrowser();
  server = await Server.start();
});

afterEach(async () => {
  for (const each of open.splice(0).reverse()) await (each.close ? each.close() : each.stop());
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

/** A window, and after the test the assurance that nothing went wrong in it. */
async function person(name, options = {}) {
  const opened = await Person.open(browser, options.url ?? server.url, { name, ...options });
  open.push(opened);
  return opened;
}

/** Each story has a room of its own, since the server keeps what was said. */
const freshRoom = () => `story-${++rooms}`;

function nothingWentWrong(...people) {
  for (const { faults } of people) assert.deepEqual(faults, []);
}

async function cable(options) {
  const proxy = await Proxy.start(server.url, options);
  open.push(proxy);
  return proxy;
}

test('two people chat, and see each other', async () => {
  const room = freshRoom();
  const ann = await person('Ann', { room });
  const bob = await person('Bob', { room });
  await ann.say('Hello Bob');
  await bob.sees(['Hello Bob']);
  await bob.say('Hello Ann');
  await ann.sees(['Hello Bob', 'Hello Ann']);
  await ann.meets('Ann', 'Bob');
  await bob.meets('Bob', 'Ann');
  const who = await ann.page.textContent('.entry:not(.own) .who');
  assert.equal(who, 'Bob');
  await ann.page.waitForSelector('.entry.own [aria-label="sent"]');
  nothingWentWrong(ann, bob);
  await bob.close();
  await ann.meets('Ann');
});

test('whoever comes later finds what was said', async () => {
  const room = freshRoom();
  const ann = await person('Ann', { room });
  await ann.say('one', 'two', 'three');
  const bob = await person('Bob', { room });
  await bob.sees(['one', 'two', 'three']);
  for (let i = 4; i <= 70; i++) await server.publish(`room:${room}`, `${i}`);
  const cid = await person('Cid', { room });
  await cid.sees(Array.from({ length: 50 }, (_, i) => `${i + 21}`));
  await cid.page.click('text=Show earlier messages');
  await cid.sees(['one', 'two', 'three', ...Array.from({ length: 67 }, (_, i) => `${i + 4}`)]);
  nothingWentWrong(ann, bob, cid);
});

test('who is cut off misses nothing and sees nothing twice, and what was written meanwhile is sent once', async () => {
  const room = freshRoom();
  const proxy = await cable();
  const ann = await person('Ann', { room });
  const bob = await person('Bob', { room, url: proxy.url });
  await ann.say('before');
  await bob.sees(['before']);
  const expected = ['before'];
  for (let round = 1; round <= 3; round++) {
    proxy.cut();
    await bob.disconnected();
    await ann.say(`a${round}`, `b${round}`, `c${round}`);
    await ann.sent();
    await bob.say(`from afar ${round}`);
    await bob.page.waitForSelector('.entry.pending');
    if (round === 1) {
      await bob.page.waitForSelector('#notice:not([hidden])');
      assert.match(await bob.page.textContent('#notice'), /connection is lost.*Try now/s);
      await bob.shot('cut-off');
    }
    proxy.mend();
    // Once it comes back by itself; then it is told to, since its waits grow.
    if (round > 1) await bob.page.evaluate(() => document.getElementById('try-now').click());
    expected.push(`a${round}`, `b${round}`, `c${round}`, `from afar ${round}`);
    await ann.sees(expected, 'Ann');
    await bob.sees(expected, 'Bob');
  }
  assert.equal(await bob.page.isVisible('#notice'), false);
  nothingWentWrong(ann, bob);
});

test('typing is shown to the others, and ends', async () => {
  const room = freshRoom();
  const ann = await person('Ann', { room });
  const bob = await person('Bob', { room });
  await Promise.all([ann.meets('Ann', 'Bob'), bob.meets('Bob', 'Ann')]);
  await bob.page.type('#text', 'Let me');
  await ann.page.waitForSelector('#typing.on');
  assert.match(await ann.page.textContent('#typing-text'), /Bob.* is typing/);
  assert.equal(await bob.page.isVisible('#typing.on'), false, 'nobody sees their own');
  await bob.page.press('#text', 'Enter');
  await ann.sees(['Let me']);
  await ann.page.waitForSelector('#typing:not(.on)', { state: 'attached' });
  nothingWentWrong(ann, bob);
});

test('what is unread is marked at the room and in the title, until it is read', async () => {
  const [room, other] = [freshRoom(), freshRoom()];
  const ann = await person('Ann', { room });
  await ann.inRoom();
  await ann.page.goto(`${server.url}#room=${other}`);
  const bob = await person('Bob', { room });
  await bob.say('one', 'two');
  const mark = `#rooms a[href="#room=${room}"] .badge`;
  await ann.page.waitForFunction((mark) => document.querySelector(mark)?.textContent === '2 unread', mark);
  assert.match(await ann.page.title(), /^\(2\) /);
  await ann.shot('unread');
  await ann.goTo(room);
  await ann.sees(['one', 'two']);
  await ann.page.waitForSelector('.unread-line');
  assert.doesNotMatch(await ann.page.title(), /^\(/);
  assert.equal(await ann.page.isVisible(mark), false);
  nothingWentWrong(ann, bob);
});

test('who reads further up stays there, and is told of what is new', async () => {
  const room = freshRoom();
  for (let i = 1; i <= 40; i++) await server.publish(`room:${room}`, `line ${i}`);
  const ann = await person('Ann', { room });
  await ann.until(
    async () => (await ann.texts()).length === 40,
    () => 'the history',
  );
  await ann.page.waitForTimeout(300);
  await ann.page.evaluate(() => (document.getElementById('log').scrollTop = 100));
  await ann.page.waitForSelector('#pill:not([hidden])');
  const before = await ann.page.evaluate(() => document.getElementById('log').scrollTop);
  await server.publish(`room:${room}`, 'new');
  await ann.page.waitForFunction(() => document.getElementById('pill').textContent.startsWith('1 new message'));
  assert.equal(await ann.page.evaluate(() => document.getElementById('log').scrollTop), before);
  await ann.page.click('#pill');
  await ann.page.waitForSelector('#pill', { state: 'hidden' });
  const gap = await ann.page.evaluate(() =>
    ((log) => log.scrollHeight - log.scrollTop - log.clientHeight)(document.getElementById('log')),
  );
  assert.ok(gap < 2, `${gap} pixels from the end`);
  nothingWentWrong(ann);
});

test('everything can be done with the keyboard alone', async () => {
  const ann = await person(undefined);
  const { page } = ann;
  const focused = () =>
    page.evaluate(
      () => document.activeElement.id || document.activeElement.getAttribute('href') || document.activeElement.tagName,
    );
  await ann.focus('name');
  await page.keyboard.type('Ann');
  await page.keyboard.press('Enter');
  await ann.connected();
  await ann.focus('text');
  const text = `by keys ${Date.now()}`;
  await page.keyboard.type(text);
  await page.keyboard.press('Shift+Enter');
  await page.keyboard.type('second line');
  await page.keyboard.press('Enter');
  await ann.until(
    async () => (await ann.texts()).at(-1) === `${text}\nsecond line`,
    () => 'the message',
  );
  await page.keyboard.press('Alt+ArrowDown');
  await page.waitForFunction(() => document.getElementById('room-name').textContent === 'ideas');
  await ann.focus('text');
  const reached = new Set();
  for (let i = 0; i < 30; i++) {
    await page.keyboard.press('Tab');
    reached.add(await focused());
  }
  for (const id of [
    'theme',
    '#room=lobby',
    '#room=random',
    'new-room-name',
    'rename',
    'log',
    'text',
    'curl',
    'copy',
    '/docs',
  ]) {
    assert.ok(reached.has(id), `Tab reaches ${id}, not only ${[...reached]}`);
  }
  await page.focus('#new-room-name');
  const room = freshRoom();
  await page.keyboard.type(room);
  await page.keyboard.press('Enter');
  await page.waitForFunction((room) => document.getElementById('room-name').textContent === room, room);
  await ann.focus('text');
  nothingWentWrong(ann);
});

test('a screen reader finds landmarks, names and what is new', async () => {
  const room = freshRoom();
  const ann = await person('Ann', { room });
  const { page } = ann;
  for (const [role, name] of [
    ['main', room],
    ['navigation', 'Rooms'],
    ['region', `Messages in ${room}`],
    ['complementary', 'Here now'],
    ['textbox', 'Message'],
    ['button', 'Send'],
  ]) {
    assert.equal(await page.getByRole(role, { name }).count(), 1, `${role} ${name}`);
  }
  assert.match(await page.getByRole('status').textContent(), /Live/);
  await ann.inRoom();
  await page.waitForTimeout(500); // What comes at once counts as history, and is not read out.
  await server.publish(`room:${room}`, { text: 'is this read out?', name: 'Backend' });
  await page.waitForFunction(() => document.getElementById('announce').textContent === 'Backend: is this read out?');
  const nameless = await page.$$eval('button, a, input, textarea', (all) =>
    all
      .filter((each) => each.checkVisibility() && !each.textContent.trim() && !each.ariaLabel && !each.labels?.length)
      .map((each) => each.outerHTML),
  );
  assert.deepEqual(nameless, []);
  nothingWentWrong(ann);
});

test('on a phone nothing is wider than the screen, and the panels give the focus back', async () => {
  const room = freshRoom();
  const phone = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
  const ann = await person('Ann', { room, ...phone });
  const { page } = ann;
  await ann.say('x'.repeat(300), 'Short');
  await server.publish(`room:${room}`, { deeply: { nested: ['y'.repeat(200)] } });
  await ann.until(
    async () => (await ann.texts()).length === 3,
    () => 'three messages',
  );
  const width = await page.evaluate(() =>
    Math.max(document.documentElement.scrollWidth, document.getElementById('log').scrollWidth),
  );
  assert.equal(width, 390);
  for (const panel of ['rooms', 'people']) {
    await page.tap(`#${panel}-open`);
    await page.waitForSelector(`#${panel}-panel.open`);
    await ann.focus(`${panel}-close`);
    await page.waitForTimeout(300); // It slides in.
    await ann.shot(`phone-${panel}`);
    await page.keyboard.press('Escape');
    await ann.focus(`${panel}-open`);
  }
  nothingWentWrong(ann);
});

test('what others send is text, whatever it looks like', async () => {
  const room = freshRoom();
  const ann = await person('Ann', { room });
  const evil =
    '<img src=x onerror="document.title=1"><script>document.title=2</script> javascript:alert(1) https://example.com/<b>';
  await server.publish(`room:${room}`, { text: evil, name: '<b>Mallory</b>', by: 'm' });
  await server.publish(`room:${room}`, 'https://example.com/a(b)?c=d. And so on');
  for (const odd of [null, 7, [], '', { text: 5 }, { by: 1, name: {} }]) await server.publish(`room:${room}`, odd);
  await ann.until(
    async () => (await ann.texts()).length === 8,
    () => 'eight messages',
  );
  assert.equal((await ann.texts())[0], evil);
  assert.equal(await ann.page.textContent('.entry .who'), '<b>Mallory</b>');
  assert.deepEqual(await ann.page.$$eval('.words a', (all) => all.map((link) => link.href)), [
    'https://example.com/',
    'https://example.com/a(b)?c=d',
  ]);
  assert.equal(await ann.page.$$eval('#log img, #log script, #log b', (all) => all.length), 0);
  nothingWentWrong(ann);
});

test('a text that is too long is stopped before it is sent', async () => {
  const ann = await person('Ann', { room: freshRoom() });
  await ann.page.fill('#text', 'z'.repeat(4003));
  assert.equal(await ann.page.textContent('#problem'), '3 characters too long.');
  await ann.page.press('#text', 'Enter');
  assert.deepEqual(await ann.texts(), []);
  await ann.say('z'.repeat(4000));
  await ann.sees(['z'.repeat(4000)]);
  nothingWentWrong(ann);
});

test('with tokens people are who the server says, whatever they call themselves', async () => {
  const room = freshRoom();
  const strict = await Server.start({ config: WITH_TOKENS });
  open.push(strict);
  const enter = async (claims) => {
    const hash = `${strict.url}#room=${room}&token=${sign(claims)}`;
    const opened = await Person.open(browser, strict.url, { room, hash });
    open.push(opened);
    await opened.connected();
    return opened;
  };
  const ann = await enter({ sub: 'ann', info: { name: 'Ann Lindqvist' } });
  const bob = await enter({ sub: 'bob', info: { name: 'Bob' } });
  assert.equal(await ann.page.isVisible('#name-dialog'), false);
  assert.doesNotMatch(ann.page.url(), /token/, 'not left in the address');
  await ann.say('hello');
  await bob.sees(['hello']);
  assert.equal(await bob.page.textContent('.entry .who'), 'Ann Lindqvist');
  assert.equal(await ann.page.$$eval('.entry.own', (all) => all.length), 1);
  await bob.meets('Bob', 'Ann Lindqvist');
  await ann.meets('Ann Lindqvist', 'Bob');
  await bob.page.type('#text', 'typing');
  await ann.page.waitForSelector('#typing.on');
  assert.match(await ann.page.textContent('#typing-text'), /Bob.* is typing/);
  const locked = await enter({ sub: 'cid', allow: [] });
  await locked.page.waitForSelector('.remark >> text=You cannot read this room');
  await locked.say('let me in');
  await locked.page.waitForSelector('.entry.failed >> text=not allowed');
  await locked.shot('refused');
  const ended = await Person.open(browser, strict.url, { room, hash: `${strict.url}#token=${sign({ seconds: -3600 })}` });
  open.push(ended);
  await ended.page.waitForSelector('#notice >> text=Your session has ended');
  nothingWentWrong(ann, bob, locked, ended);
});

test('where WebSocket is blocked the chat goes on by event stream', async () => {
  const room = freshRoom();
  const proxy = await cable({ blocksSockets: true });
  const ann = await person('Ann', { room });
  await ann.say('before');
  await ann.sent();
  const bob = await person('Bob', { room, url: proxy.url });
  assert.equal(await bob.page.textContent('#connection-text'), 'Live, by event stream');
  await bob.sees(['before']);
  await bob.say('by POST');
  await ann.sees(['before', 'by POST']);
  proxy.cut();
  await bob.disconnected();
  await ann.say('while away');
  proxy.mend();
  await bob.sees(['before', 'by POST', 'while away']);
  await ann.say('after');
  await bob.sees(['before', 'by POST', 'while away', 'after']);
  nothingWentWrong(ann, bob);
});

test('a server that starts anew is returned to, and the lost history is told', async () => {
  const room = freshRoom();
  let own = await Server.start({ listen: await freeAddress() });
  open.push({ stop: () => own.stop() });
  const ann = await person('Ann', { room, url: own.url });
  await ann.say('before');
  await ann.sees(['before']);
  const { host } = new URL(own.url);
  await own.stop();
  await ann.disconnected();
  own = await Server.start({ listen: host });
  await ann.connected();
  await ann.page.waitForSelector('.remark >> text=lost its history');
  await ann.say('after');
  await ann.sees(['before', 'after']);
  nothingWentWrong(ann);
});

test('a draining server is left and found again', async () => {
  const room = freshRoom();
  let own = await Server.start({ listen: await freeAddress() });
  open.push({ stop: () => own.stop() });
  const ann = await person('Ann', { room, url: own.url });
  const { host } = new URL(own.url);
  await own.stop('SIGTERM');
  own = await Server.start({ listen: host });
  await ann.page.evaluate(() => document.getElementById('try-now').click());
  await ann.connected();
  await ann.say('here again');
  await ann.sees(['here again']);
  nothingWentWrong(ann);
});

test('the pages ask nobody but the server, under a strict policy', async () => {
  const asked = new Set();
  const ann = await person(undefined);
  ann.page.on('request', (request) => asked.add(new URL(request.url()).origin));
  for (const path of ['', 'docs']) {
    const response = await ann.page.goto(server.url + path);
    const policy = response.headers()['content-security-policy'] ?? '';
    assert.match(policy, /default-src '(none|self)'/);
    assert.doesNotMatch(policy, /unsafe-/);
    assert.equal(response.headers()['referrer-policy'], 'no-referrer');
  }
  assert.deepEqual([...asked], [new URL(server.url).origin]);
  await ann.page.waitForSelector('article.operation');
  await ann.page.fill('#find', 'publish');
  await ann.page.waitForFunction(() =>
    /^[1-9]\d* operations? found$/.test(document.getElementById('found').textContent),
  );
  assert.ok(
    (await ann.page.$$('article.operation:not([hidden])')).length < (await ann.page.$$('article.operation')).length,
  );
  await ann.page.fill('#find', '');
  for (const summary of await ann.page.$$('details:not([open]) > summary'))
    if (await summary.isVisible()) await summary.click();
  await ann.shot('docs');
  nothingWentWrong(ann);
});

test('a picture of it, light and dark, wide and narrow', async () => {
  const room = 'lobby';
  const narrow = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
  const own = await Server.start();
  open.push(own);
  const url = own.url;
  const ann = await person('Ann Lindqvist', { room, url, deviceScaleFactor: 2 });
  const bob = await person('Bob', { room, url });
  const lea = await person('ליאה כהן', { room, url });
  const kim = await person('Kim Novák', { room, url, ...narrow });
  const lines = [
    [ann, 'Morning! Is the new node up?'],
    [bob, 'Since seven, and nobody noticed.'],
    [bob, 'I pulled its network cable twice to be sure.'],
    [ann, 'Was anything lost?'],
    [bob, 'Nothing lost, nothing twice. It is all in the audit: https://example.com/audit/42'],
    [lea, 'בוקר טוב! אני קוראת מהרכבת'],
    [kim, '🎉'],
    [ann, 'Then we switch over at noon. I will write it down.'],
    [kim, 'Deal 👍'],
  ];
  for (const [index, [who, text]] of lines.entries()) {
    await who.say(text);
    await ann.until(
      async () => (await ann.texts()).length === index + 1,
      () => text,
    );
  }
  await own.publish('room:ideas', 'What about a quieter notification?');
  await lea.page.type('#text', 'א');
  await ann.page.waitForSelector('#typing.on');
  await ann.page.waitForSelector('#rooms .badge:not([hidden])');
  await ann.until(
    async () => (await ann.people()).length === 4 && !(await ann.people()).includes('Guest'),
    () => 'four names',
  );
  await ann.page.waitForTimeout(400); // The last message's arrival is animated.
  for (const colorScheme of ['light', 'dark']) {
    for (const [who, width] of [
      [ann, 'wide'],
      [kim, 'narrow'],
    ]) {
      await who.page.emulateMedia({ colorScheme });
      await who.shot(`chat-${width}-${colorScheme}`);
    }
  }
  if (process.env.FANWIRE_PICTURE) {
    await ann.page.emulateMedia({ colorScheme: 'light' });
    await ann.page.screenshot({ path: process.env.FANWIRE_PICTURE });
  }
  nothingWentWrong(ann, bob, lea, kim);
});
