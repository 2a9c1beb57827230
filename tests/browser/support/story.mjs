/** What the stories of the client have in common, whichever server they are told of. */

/** Writes down each state of a client in `states`. */
export function watch(client) {
  client.states = [];
  client.addEventListener('state', ({ detail }) => client.states.push(detail.state));
  return client;
}

/** Subscribes, and writes down the data of every message and every gap in `seen`. */
export function listen(client, channel, options = {}) {
  const subscription = client.subscribe(channel, options);
  subscription.seen = [];
  subscription.addEventListener('message', ({ detail }) => subscription.seen.push(detail.data));
  subscription.addEventListener('gap', () => subscription.seen.push('gap'));
  return subscription;
}
