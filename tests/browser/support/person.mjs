/** Somebody with a browser window on the chat, and everything that went wrong in it. */
import { mkdir } from 'node:fs/promises';
import { chromium } from 'playwright-core';
import { DEADLINE } from './fake-server.mjs';

export const ARTIFACTS = new URL('../../../artifacts/', import.meta.url).pathname;

export async function openBrowser() {
  await mkdir(ARTIFACTS, { recursive: true });
  const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
  return chromium.launch({ executablePath, args: ['--no-sandbox'] });
}

export class Person {
  /** Console errors, exceptions, and what the Content-Security-Policy stopped. */
  faults = [];

  /** Opens a window of its own; with `name` given, enters the chat under it. */
  static async open(browser, url, { name, room = 'lobby', hash = `${url}#room=${room}`, ...options } = {}) {
    const person = new Person();
    person.context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
    person.context.setDefaultTimeout(DEADLINE);
    person.page = await person.context.newPage();
    person.#watch();
    await person.page.goto(hash);
    if (name) {
      await person.page.fill('#name', name);
      await person.page.keyboard.press('Enter');
      await person.connected();
    }
    return person;
  }

  #watch() {
    const { page } = this;
    page.on('console', (message) => {
      // That a connection was refused is the browser's own remark, and what these tests bring about.
      const own = /net::ERR_|WebSocket connection to|Failed to load resource/.test(message.text());
      if (message.type() === 'error' && !own) this.faults.push(`console: ${message.text()}`);
    });
    page.on('pageerror', (error) => this.faults.push(`exception: ${error.stack}`));
    page.exposeFunction('stopped', (what) => this.faults.push(`Content-Security-Policy: ${what}`));
    page.addInitScript(() =>
      document.addEventListener('securitypolicyviolation', (event) =>
        window.stopped(`${event.violatedDirective} ${event.blockedURI}`),
      ),
    );
  }

  async close() {
    await this.context.close();
  }

  connected() {
    return this.page.waitForSelector('#connection[data-state="connected"]');
  }

  disconnected() {
    return this.page.waitForSelector('#connection:not([data-state="connected"])');
  }

  async say(...texts) {
    for (const text of texts) {
      await this.page.fill('#text', text);
      await this.page.press('#text', 'Enter');
    }
  }

  /** Waits until the server has all that was written here. */
  sent() {
    return this.page.waitForSelector('.entry.pending', { state: 'detached' });
  }

  /** Waits until the open room is subscribed: with that comes who is there, oneself at least. */
  inRoom() {
    return this.page.waitForSelector('#people .name');
  }

  /** Waits until these people, oneself first, are shown by name: each has been heard in the room, moments included. */
  meets(...names) {
    return this.until(
      async () => (await this.people()).join() === names.join(),
      async () => `${names[0]} sees ${await this.people()}, not ${names}`,
    );
  }

  /** Waits until the element with this id has the focus. */
  focus(id) {
    return this.page.waitForFunction((id) => document.activeElement.id === id, id);
  }

  /** The texts in the open room, in order, without their times. */
  texts() {
    return this.page.$$eval('.entry .words', (all) =>
      all.map((words) => {
        const copy = words.cloneNode(true);
        copy.querySelector('.facts')?.remove();
        return copy.textContent;
      }),
    );
  }

  /** Waits until the open room shows exactly these texts, all of them sent; fails with what it shows instead. */
  async sees(expected, what = '') {
    await this.until(
      async () => {
        const waiting = await this.page.$$('.entry.pending, .entry.failed');
        return waiting.length === 0 && JSON.stringify(await this.texts()) === JSON.stringify(expected);
      },
      async () => `${what} expected ${JSON.stringify(expected)}, shown are ${JSON.stringify(await this.texts())}`,
    );
  }

  async people() {
    return this.page.$$eval('#people .name', (all) => all.map((name) => name.textContent));
  }

  async until(fact, what) {
    const end = Date.now() + DEADLINE;
    while (!(await fact())) {
      if (Date.now() > end) throw new Error(`waited ${DEADLINE} ms: ${await what()}; ${await this.#situation()}`);
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
  }

  /** What a failure says of the connection. */
  async #situation() {
    const [state, notice] = await Promise.all([
      this.page.textContent('#connection-text'),
      this.page.textContent('#notice:not([hidden])', { timeout: 100 }).catch(() => 'nothing'),
    ]);
    return `the page says "${state}" and tells ${notice.trim()}; faults: ${JSON.stringify(this.faults)}`;
  }

  goTo(room) {
    return this.page.click(`#rooms a[href="#room=${room}"]`);
  }

  shot(name) {
    return this.page.screenshot({ path: `${ARTIFACTS}${name}.png` });
  }
}
