/**
 * A readable page of the server's OpenAPI 3.1 document: operations by tag, with everything they refer to put in place.
 *
 * It asks nobody but this server, and everything from the document reaches the page as text. Start at the end.
 */

const METHODS = ['get', 'put', 'post', 'delete', 'options', 'head', 'patch', 'trace'];
const DEEPEST = 8;

const $ = (id) => document.getElementById(id);

function element(tag, className = '', ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ''));
  return made;
}

// ---- the document ----

/** What a `$ref` inside `api` means, its siblings laid over it; with the name that it was called by. */
function resolve(api, node) {
  let name;
  for (let steps = 0; node?.$ref && steps < 20; steps++) {
    const { $ref, ...beside } = node;
    name = $ref.split('/').at(-1);
    const target = $ref
      .replace(/^#\//, '')
      .split('/')
      .reduce((at, part) => at?.[unescapePointer(part)], api);
    if (!target) return { node: { description: `(${$ref} is not in the document)` }, name };
    node = { ...target, ...beside };
  }
  return { node: node ?? {}, name };
}

const unescapePointer = (part) => decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~');

/** Every operation with its path's own parameters, in the document's order. */
function operationsOf(api) {
  return Object.entries(api.paths ?? {}).flatMap(([path, reference]) => {
    const item = resolve(api, reference).node;
    return METHODS.filter((method) => item[method]).map((method) => {
      const operation = item[method];
      const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map(
        (each) => resolve(api, each).node,
      );
      const unique = new Map(parameters.map((each) => [`${each.in} ${each.name}`, each]));
      const id = operation.operationId ?? `${method}-${path}`.replace(/\W+/g, '-');
      return { ...operation, id, path, method, tag: operation.tags?.[0] ?? 'Other', parameters: [...unique.values()] };
    });
  });
}

/** In one line: `string (uuid)`, `array of Member`, `integer, 1 to 1000`. */
function typeOf(api, reference, depth = 0) {
  if (reference === true || reference === undefined) return 'any JSON';
  const { node, name } = resolve(api, reference);
  if (depth > DEEPEST) return name ?? '…';
  const some = node.oneOf ?? node.anyOf;
  if (some) {
    const kinds = new Set(some.map((each) => typeOf(api, each, depth + 1)));
    return [...kinds].join(' or ');
  }
  if (node.const !== undefined) return JSON.stringify(node.const);
  if (node.enum) return node.enum.map((value) => JSON.stringify(value)).join(' | ');
  if (node.allOf && !node.type) return name ?? node.allOf.map((each) => typeOf(api, each, depth + 1)).join(' and ');
  const types = [node.type ?? (node.properties ? 'object' : 'any JSON')].flat();
  const words = types.map((type) => {
    if (type === 'array') return `array of ${typeOf(api, node.items, depth + 1)}`;
    if (type === 'object' && name) return name;
    if (type === 'object' && typeof node.additionalProperties === 'object')
      return `object of ${typeOf(api, node.additionalProperties, depth + 1)}`;
    return type;
  });
  return words.join(' or ') + (node.format ? ` (${node.format})` : '');
}

function limitsOf(schema) {
  const { minimum, maximum, minLength, maxLength, minItems, maxItems, pattern } = schema;
  const range = (least, most, unit) =>
    least === undefined && most === undefined
      ? ''
      : `${least ?? ''}${least !== undefined && most !== undefined ? ' to ' : least === undefined ? 'at most ' : ' or more'}${most ?? ''}${unit}`;
  return [
    range(minimum, maximum, ''),
    range(minLength, maxLength, ' characters'),
    range(minItems, maxItems, ' items'),
    pattern && `matches ${pattern}`,
    schema.default !== undefined && `default ${JSON.stringify(schema.default)}`,
  ].filter(Boolean);
}

/** All members of an object schema, those of its `allOf` parts included. */
function membersOf(api, reference, depth = 0) {
  const { node } = resolve(api, reference);
  const parts = depth < DEEPEST ? (node.allOf ?? []) : [];
  const inherited = parts.map((part) => membersOf(api, part, depth + 1));
  return {
    properties: Object.assign({}, ...inherited.map(({ properties }) => properties), node.properties),
    required: new Set([...inherited.flatMap(({ required }) => [...required]), ...(node.required ?? [])]),
  };
}

/** A value that fits `schema`: its own example where it has one. */
function exampleOf(api, reference, seen = []) {
  const { node, name } = resolve(api, reference);
  if (node.example !== undefined) return node.example;
  if (Array.isArray(node.examples) && node.examples.length) return node.examples[0];
  if (node.const !== undefined) return node.const;
  if (node.default !== undefined && node.default !== null) return node.default;
  if (node.enum) return node.enum[0];
  if (name && seen.includes(name)) return {};
  const deeper = name ? [...seen, name] : [...seen, ''];
  if (deeper.length > DEEPEST) return null;
  const some = (node.oneOf ?? node.anyOf)?.find((each) => resolve(api, each).node.type !== 'null');
  if (some) return exampleOf(api, some, deeper);
  const { properties } = membersOf(api, node);
  if (Object.keys(properties).length) {
    return Object.fromEntries(Object.entries(properties).map(([key, value]) => [key, exampleOf(api, value, deeper)]));
  }
  const type = [node.type].flat().find((each) => each !== 'null');
  if (type === 'array') return node.items ? [exampleOf(api, node.items, deeper)] : [];
  return (
    {
      string: node.format === 'date-time' ? '2026-01-31T12:00:00Z' : 'text',
      integer: 1,
      number: 1,
      boolean: true,
      object: {},
      null: null,
    }[type] ?? {}
  );
}

// ---- the page ----

/** Text with paragraphs, lists and `code`, which is all the Markdown that the document uses. */
function prose(text = '') {
  return text
    .trim()
    .split(/\n\s*\n/)
    .filter(Boolean)
    .map((block) => {
      const lines = block.split('\n');
      if (lines.every((line) => /^\s*[-*] /.test(line))) {
        return element(
          'ul',
          '',
          lines.map((line) => element('li', '', inline(line.replace(/^\s*[-*] /, '')))),
        );
      }
      const heading = /^#+\s+(.*)$/.exec(block);
      return heading ? element('p', 'strong', inline(heading[1])) : element('p', '', inline(block));
    });
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (part.startsWith('`') && part.length > 2) return element('code', '', part.slice(1, -1));
    if (part.startsWith('**') && part.length > 4) return element('strong', '', part.slice(2, -2));
    return part;
  });
}

/** A schema as a list of members; what they hold in turn opens on demand, so that a cycle ends. */
function schemaView(api, reference, depth = 0) {
  const { node } = resolve(api, reference);
  const items = [node.type].flat().includes('array') ? node.items : undefined;
  if (items) return schemaView(api, items, depth);
  const some = node.oneOf ?? node.anyOf;
  if (some && depth < DEEPEST) {
    const kinds = some.filter((each) => resolve(api, each).node.type !== 'null');
    if (kinds.length === 1) return schemaView(api, kinds[0], depth);
    const views = kinds.map((each) => [typeOf(api, each), schemaView(api, each, depth + 1)]).filter(([, view]) => view);
    return views.length
      ? element(
          'div',
          'kinds',
          views.map(([type, view]) => element('div', '', element('p', 'kind', type), view)),
        )
      : null;
  }
  const { properties, required } = membersOf(api, node);
  if (Object.keys(properties).length === 0) return null;
  return element(
    'ul',
    'members',
    Object.entries(properties).map(([name, schema]) => memberView(api, name, schema, required.has(name), depth)),
  );
}

function hasMembers(api, reference, depth = 0) {
  const { node } = resolve(api, reference);
  if (depth > DEEPEST) return false;
  if (node.items) return hasMembers(api, node.items, depth + 1);
  const some = node.oneOf ?? node.anyOf;
  if (some) return some.some((each) => hasMembers(api, each, depth + 1));
  return Object.keys(membersOf(api, node).properties).length > 0;
}

function memberView(api, name, reference, required, depth) {
  const { node } = resolve(api, reference);
  const head = element(
    'div',
    'member',
    element('code', 'name', name),
    element('span', 'type', typeOf(api, reference)),
    required ? element('span', 'required', 'required') : null,
    limitsOf(node).map((limit) => element('span', 'limit', limit)),
  );
  const item = element('li', '', head, element('div', 'prose', prose(node.description)));
  // What stands inside is made when it is opened: a schema may hold itself.
  if (depth < DEEPEST && hasMembers(api, reference)) {
    const details = element('details', '', element('summary', '', `members of ${name}`));
    details.addEventListener(
      'toggle',
      () => details.childElementCount === 1 && details.append(schemaView(api, reference, depth + 1)),
    );
    item.append(details);
  }
  return item;
}

function contentView(api, content = {}) {
  return Object.entries(content).map(([type, { schema, example, examples }]) => {
    const shown = example ?? Object.values(examples ?? {}).map((each) => resolve(api, each).node.value)[0];
    const value = shown ?? (schema && type.includes('json') ? exampleOf(api, schema) : undefined);
    const text = typeof value === 'string' ? value : JSON.stringify(value, null, 2);
    const sample = element('pre', '', text ?? '');
    sample.tabIndex = 0;
    return element(
      'div',
      'content',
      element('p', 'media', element('code', '', type), schema ? element('span', 'type', typeOf(api, schema)) : null),
      schema ? schemaView(api, schema) : null,
      text ? element('details', 'sample', element('summary', '', 'example'), sample) : null,
    );
  });
}

function parametersView(api, parameters) {
  if (parameters.length === 0) return null;
  const rows = parameters.map((parameter) => {
    const schema = parameter.schema ?? {};
    const head = element(
      'div',
      'member',
      element('code', 'name', parameter.name),
      element('span', 'type', `${typeOf(api, schema)}, in ${parameter.in}`),
      parameter.required ? element('span', 'required', 'required') : null,
      limitsOf(resolve(api, schema).node).map((limit) => element('span', 'limit', limit)),
    );
    return element('li', '', head, element('div', 'prose', prose(parameter.description ?? schema.description)));
  });
  return section('Parameters', element('ul', 'members', rows));
}

const section = (title, ...children) => element('section', '', element('h4', '', title), ...children);

function responsesView(api, responses = {}) {
  return section(
    'Answers',
    element(
      'ul',
      'answers',
      Object.entries(responses).map(([status, reference]) => {
        const response = resolve(api, reference).node;
        const kind = /^[23]/.test(status) ? 'good' : 'bad';
        const head = [
          element('code', `status ${kind}`, status),
          element('span', 'prose', inline(response.description ?? '')),
        ];
        const headers = Object.entries(response.headers ?? {}).map(([name, header]) =>
          element('p', 'header', element('code', '', name), ' ', inline(resolve(api, header).node.description ?? '')),
        );
        const content = contentView(api, response.content);
        if (content.length + headers.length === 0) return element('li', 'plain', head);
        const details = element('details', '', element('summary', '', head), headers, content);
        details.open = kind === 'good';
        return element('li', '', details);
      }),
    ),
  );
}

function curlOf(api, operation) {
  const parts = [
    `curl ${operation.method === 'get' ? '' : `-X ${operation.method.toUpperCase()} `}'${location.origin}${operation.path}'`,
  ];
  if (securityOf(api, operation).length) parts.push("-H 'Authorization: Bearer KEY'");
  const body = resolve(api, operation.requestBody).node.content?.['application/json'];
  if (body) {
    const value =
      body.example ??
      Object.values(body.examples ?? {}).map((each) => resolve(api, each).node.value)[0] ??
      exampleOf(api, body.schema ?? {});
    parts.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(value).replaceAll("'", "'\\''")}'`);
  }
  return parts.join(' \\\n  ');
}

function securityOf(api, operation) {
  const wanted = operation.security ?? api.security ?? [];
  return [...new Set(wanted.flatMap((each) => Object.keys(each)))];
}

function operationView(api, operation) {
  const { id, method, path, summary, description, deprecated, requestBody } = operation;
  const body = requestBody && resolve(api, requestBody).node;
  const keys = securityOf(api, operation).map((name) => {
    const scheme = resolve(api, api.components?.securitySchemes?.[name]).node;
    return element('li', '', element('code', '', name), ' ', inline(scheme.description ?? ''));
  });
  const curl = element('pre', '', curlOf(api, operation));
  curl.tabIndex = 0;
  const view = element(
    'article',
    `operation${deprecated ? ' deprecated' : ''}`,
    element(
      'h3',
      '',
      element('a', 'anchor', element('span', `method ${method}`, method.toUpperCase()), element('code', 'path', path)),
    ),
    element('p', 'summary', inline(summary ?? ''), deprecated ? element('span', 'limit', 'deprecated') : null),
    element('div', 'prose', prose(description === summary ? '' : description)),
    parametersView(api, operation.parameters),
    body
      ? section(
          `Body${body.required ? '' : ', optional'}`,
          element('div', 'prose', prose(body.description)),
          contentView(api, body.content),
        )
      : null,
    responsesView(api, operation.responses),
    keys.length ? section('Needs one of', element('ul', 'keys', keys)) : null,
    element('details', 'sample', element('summary', '', 'with curl'), curl),
  );
  view.id = id;
  view.querySelector('.anchor').href = `#${id}`;
  view.words = [method, path, summary, description, id, operation.tag, ...operation.parameters.map(({ name }) => name)]
    .join(' ')
    .toLowerCase();
  return view;
}

function introView(api) {
  const { title, version, summary, description } = api.info ?? {};
  $('intro').append(
    element('h1', '', title ?? 'HTTP API', element('span', 'version', version ?? '')),
    element('div', 'prose', prose(description ?? summary)),
  );
  document.title = `${title ?? 'HTTP API'} ${version ?? ''}`.trim();
}

/** A path that may break before each of its parts. */
function breakable(path) {
  return path.split(/(?=\/)/).flatMap((part) => [document.createElement('wbr'), part]);
}

/** Draws the page; answers with what the search field searches. */
function show(api) {
  introView(api);
  const groups = new Map((api.tags ?? []).map(({ name, description }) => [name, { description, operations: [] }]));
  for (const operation of operationsOf(api)) {
    if (!groups.has(operation.tag)) groups.set(operation.tag, { operations: [] });
    groups.get(operation.tag).operations.push(operation);
  }
  const shown = [];
  for (const [tag, { description, operations }] of groups) {
    if (operations.length === 0) continue;
    const views = operations.map((operation) => operationView(api, operation));
    const links = operations.map(({ id, method, path }) => {
      const link = element(
        'a',
        '',
        element('span', `method ${method}`, method.toUpperCase()),
        element('span', 'path', breakable(path)),
      );
      link.href = `#${id}`;
      return element('li', '', link);
    });
    const group = element(
      'section',
      'group',
      element('h2', '', tag),
      element('div', 'prose', prose(description)),
      views,
    );
    const list = element('div', '', element('h2', '', tag), element('ul', '', links));
    $('operations').append(group);
    $('contents').append(list);
    shown.push({ group, list, views, links });
  }
  return shown;
}

/** Leaves what has all the words of the search field. */
function search(shown) {
  const words = $('find').value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const { group, list, views, links } of shown) {
    const hits = views.map((view) => words.every((word) => view.words.includes(word)));
    hits.forEach((hit, index) => {
      views[index].hidden = links[index].hidden = !hit;
    });
    group.hidden = list.hidden = !hits.includes(true);
    count += hits.filter(Boolean).length;
  }
  $('intro').hidden = words.length > 0;
  $('found').textContent = words.length ? `${count} ${count === 1 ? 'operation' : 'operations'} found` : '';
}

function listen(shown) {
  $('find').addEventListener('input', () => search(shown));
  document.addEventListener('keydown', (event) => {
    if (event.key === '/' && document.activeElement !== $('find')) {
      event.preventDefault();
      $('find').focus();
    } else if (event.key === 'Escape' && document.activeElement === $('find')) {
      $('find').value = '';
      search(shown);
    }
  });
}

try {
  const response = await fetch('/v1/openapi.json', { signal: AbortSignal.timeout(15_000) });
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  const shown = show(await response.json());
  listen(shown);
  search(shown);
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
} catch (error) {
  $('found').textContent = `The document could not be shown: ${error.message}.`;
}
