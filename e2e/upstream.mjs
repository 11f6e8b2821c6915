// The far side of the proxy: fakes of the services in keylease's catalogue, which take the true key alone, in the place
// where the service takes it, once. What they are sent is written to a file, so that a run can be searched afterwards.
//
// Usage: upstream.mjs FOLDER. FOLDER/keys.json holds the true key of each service, FOLDER/repositories bare git
// repositories; it gets
//   origins.json     where each service is, by name
//   ca.pem           the authority that vouches for them, made for this run
//   received.jsonl   each request, whole, but for the true key where it belongs
//   verdicts.jsonl   what was thought of it
// E2E_PUBLIC is an address of this machine that looks like one of the internet's; where it is set, all of them listen
// there, on port 443, for the names that the services really have.
import { execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { setInterval, clearInterval } from 'node:timers'
import { gzipSync } from 'node:zlib'

const folder = process.argv[2]
const keys = JSON.parse(readFileSync(`${folder}/keys.json`))
const publicAddress = process.env.E2E_PUBLIC

const bearer = key => ({ authorization: [`Bearer ${key}`, `bearer ${key}`, `token ${key}`] })
const basic = (user, key) => 'Basic ' + Buffer.from(`${user}:${key}`).toString('base64')

// services say by which names each is called, and in which headers it takes its key.
const services = {
  openai: { names: ['api.openai.com'], slot: bearer, answer: openai },
  anthropic: { names: ['api.anthropic.com'], slot: key => ({ 'x-api-key': [key], ...bearer(key) }), answer: anthropic }, // its SDK has used the one and uses the other
  github: {
    names: ['api.github.com', 'github.com', 'uploads.github.com'],
    slot: key => ({ authorization: [...bearer(key).authorization, basic('x-access-token', key), basic('x-oauth-basic', key)] }),
    answer: github
  },
  npm: { names: ['registry.npmjs.org'], slot: bearer, answer: npm },
  stripe: { names: ['api.stripe.com'], slot: key => ({ authorization: [`Bearer ${key}`, basic(key, '')] }), answer: one('GET', '/v1/balance', { object: 'balance' }) },
  gitlab: { names: ['gitlab.com'], slot: key => ({ ...bearer(key), 'private-token': [key] }), answer: one('GET', '/api/v4/user', { username: 'e2e' }) },
  huggingface: { names: ['huggingface.co'], slot: bearer, answer: one('GET', '/api/whoami-v2', { name: 'e2e' }) },
  slack: { names: ['slack.com'], slot: bearer, answer: one('POST', '/api/auth.test', { ok: true, user: 'e2e' }) },
  house: { names: [], slot: key => ({ 'x-house-key': [key] }), answer: house, plain: true }, // one that no catalogue knows
  elsewhere: { names: ['elsewhere.example'], slot: () => ({}), answer: (_, res) => json(res, 200, { found: 'elsewhere' }) } // where redirects lead
}

const log = (file, line) => appendFileSync(`${folder}/${file}`, JSON.stringify({ at: Date.now(), ...line }) + '\n')
const json = (res, status, body, headers = {}) => {
  res.writeHead(status, { 'content-type': 'application/json', ...headers })
  res.end(JSON.stringify(body))
}

// judge says what is wrong with the place of the key; nothing if it is right. It takes the key out of what is logged.
function judge (service, request) {
  const key = keys[service]
  const slots = services[service].slot(key)
  const found = []
  for (const [name, values] of Object.entries(slots)) {
    if (values.includes(request.headers[name])) {
      found.push(name)
      request.headers[name] = '[the key]'
    }
  }
  const rest = JSON.stringify(request)
  const forms = key === undefined ? [] : [key, Buffer.from(key).toString('base64').slice(0, 20), Buffer.from(key).toString('hex')]
  if (forms.some(form => rest.includes(form))) return 'the key stands where it does not belong'
  if (key === undefined) return
  if (found.length === 0) return ['authorization', ...Object.keys(slots)].some(name => name in request.headers) ? 'another key' : 'no key'
  if (found.length > 1) return 'the key stands in two places'
}

function handler (service) {
  return async (req, res) => {
    const name = (req.headers.host ?? '').replace(/:\d+$/, '')
    const called = service ?? Object.keys(services).find(s => services[s].names.includes(name))
    if (!called) return json(res, 421, { error: `nobody here is called ${name}` })
    const body = []
    for await (const chunk of req) body.push(chunk)
    req.body = Buffer.concat(body)
    const headers = {}
    for (let i = 0; i < req.rawHeaders.length; i += 2) {
      const name = req.rawHeaders[i].toLowerCase()
      headers[name] = headers[name] === undefined ? req.rawHeaders[i + 1] : `${headers[name]}, ${req.rawHeaders[i + 1]}`
    }
    const request = { service: called, method: req.method, url: req.url, headers: { ...headers }, body: req.body.toString('latin1') }
    const why = judge(called, request)
    log('received.jsonl', request)
    log('verdicts.jsonl', { service: called, method: req.method, url: req.url, ok: !why, why })
    res.on('close', () => { if (!res.writableFinished) log('verdicts.jsonl', { service: called, url: req.url, cut: true }) })
    // What OpenAI really says: it shows the key that it did not like.
    if (why) {
      return json(res, 401, { error: { message: `Incorrect API key provided: ${headers.authorization ?? headers['x-api-key']}`, type: 'invalid_request_error' } },
        { 'www-authenticate': 'Basic realm="fake"' })
    }
    try {
      await services[called].answer(req, res, new URL(req.url, 'http://fake'))
    } catch (err) {
      console.error(err)
      res.headersSent ? res.destroy() : json(res, 500, { error: String(err) })
    }
  }
}

// one answers a single call.
function one (method, path, body) {
  return (req, res, url) => req.method === method && url.pathname === path ? json(res, 200, body) : json(res, 404, { message: 'Not Found' })
}

// events sends server-sent events, one every few milliseconds; without an end where next never returns undefined.
function events (res, next, pause = 5) {
  res.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
  let n = 0
  const timer = setInterval(() => {
    const event = next(n++)
    if (event === undefined) {
      clearInterval(timer)
      res.end()
    } else res.write(event)
  }, pause)
  res.on('close', () => clearInterval(timer))
}

const words = ['Hello', ' from', ' the', ' fake', '.']

// openai behaves as the model's name says.
function openai (req, res, url) {
  if (req.method === 'GET' && url.pathname === '/v1/models') {
    return json(res, 200, { object: 'list', data: [{ id: 'fake', object: 'model', created: 0, owned_by: 'e2e' }] })
  }
  if (req.method !== 'POST' || url.pathname !== '/v1/chat/completions') return json(res, 404, { error: { message: 'Not Found' } })
  const { model, stream } = JSON.parse(req.body)
  const key = keys.openai
  const completion = content => ({ id: 'c1', object: 'chat.completion', created: 0, model, choices: [{ index: 0, finish_reason: 'stop', message: { role: 'assistant', content } }] })
  const chunk = content => 'data: ' + JSON.stringify({ id: 'c1', object: 'chat.completion.chunk', created: 0, model, choices: [{ index: 0, finish_reason: null, delta: { content } }] }) + '\n\n'
  switch (model) {
    case 'forever': return events(res, n => chunk(`${n} `), 20)
    case 'silent': // says that it will answer, and does not
      res.writeHead(200, { 'content-type': 'text/event-stream' })
      return res.flushHeaders()
    case 'hang': return // not even that
    case 'reset': return res.socket.destroy()
    case 'echo':
      if (!stream) return json(res, 200, completion(`your key is ${key}, in base64 ${Buffer.from('x' + key).toString('base64')}, in hex ${Buffer.from(key).toString('hex')}`))
      { // the key falls apart at every place it can, on the way
        const pieces = [...chunk(`your key is ${key}`)]
        return events(res, n => pieces[n] ?? (n === pieces.length ? 'data: [DONE]\n\n' : undefined), 1)
      }
    case 'gzip': {
      const zipped = gzipSync(JSON.stringify(completion(`your key is ${key}`)))
      res.writeHead(200, { 'content-type': 'application/json', 'content-encoding': 'gzip', 'content-length': zipped.length })
      return res.end(zipped)
    }
    case 'redirect': return json(res, 302, {}, { location: `https://elsewhere.example/v1/chat/completions?key=${key}` })
    case 'refuse': return json(res, 401, { error: { message: `Incorrect API key provided: ${key}`, type: 'invalid_request_error' } })
  }
  if (!stream) return json(res, 200, completion(words.join('')))
  events(res, n => n < words.length ? chunk(words[n]) : n === words.length ? 'data: [DONE]\n\n' : undefined)
}

function anthropic (req, res, url) {
  if (req.method === 'GET' && url.pathname === '/v1/models') return json(res, 200, { data: [{ type: 'model', id: 'fake', display_name: 'Fake', created_at: '2026-01-01T00:00:00Z' }], has_more: false, first_id: 'fake', last_id: 'fake' })
  if (req.method !== 'POST' || url.pathname !== '/v1/messages') return json(res, 404, { type: 'error', error: { type: 'not_found_error', message: 'Not Found' } })
  const { model, stream } = JSON.parse(req.body)
  const message = { id: 'm1', type: 'message', role: 'assistant', model, content: [], stop_reason: null, stop_sequence: null, usage: { input_tokens: 1, output_tokens: 1 } }
  const text = model === 'echo' ? `your key is ${keys.anthropic}` : words.join('')
  if (!stream) return json(res, 200, { ...message, content: [{ type: 'text', text }], stop_reason: 'end_turn' })
  const event = data => `event: ${data.type}\ndata: ${JSON.stringify(data)}\n\n`
  const delta = text => event({ type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text } })
  const before = [event({ type: 'message_start', message }), event({ type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } })]
  if (model === 'forever') return events(res, n => before[n] ?? delta(`${n} `), 20)
  const all = [...before, ...words.map(delta), event({ type: 'content_block_stop', index: 0 }),
    event({ type: 'message_delta', delta: { stop_reason: 'end_turn', stop_sequence: null }, usage: { output_tokens: 5 } }), event({ type: 'message_stop' })]
  events(res, n => all[n])
}

function github (req, res, url) {
  const path = url.pathname.replace(/^\/api\/v3/, '') // where gh and others think of an enterprise server
  const git = path.match(/^\/(e2e\/[a-z]+)(?:\.git)?(\/(?:info\/refs|git-upload-pack|git-receive-pack))$/)
  if (git) return smart(req, res, url, `/${git[1]}.git${git[2]}`)
  if (/^(\/api)?\/graphql$/.test(path)) return json(res, 200, { data: { viewer: { login: 'e2e-user' }, repository: { name: 'tiny', owner: { login: 'e2e' }, description: 'a fake repository', isPrivate: false } } })
  const repo = { id: 1, name: 'tiny', full_name: 'e2e/tiny', private: true, owner: { login: 'e2e' }, default_branch: 'main', html_url: 'https://github.com/e2e/tiny' }
  const answers = {
    'GET /': { current_user_url: 'https://api.github.com/user' },
    'GET /user': { login: 'e2e-user', id: 1 },
    'GET /repos/e2e/tiny': repo,
    'GET /repos/e2e/tiny/issues': [{ number: 1, title: 'a fake issue' }],
    'POST /repos/e2e/tiny/issues': { number: 2, title: 'another' }
  }
  const answer = answers[`${req.method} ${path}`]
  if (answer) return json(res, 200, answer, { 'x-oauth-scopes': 'repo' })
  json(res, 404, { message: 'Not Found' })
}

// smart lets git answer for the repositories itself, as any git server does.
function smart (req, res, url, path) {
  return new Promise((resolve, reject) => {
    const cgi = spawn('git', ['http-backend'], {
      env: {
        PATH: process.env.PATH, GIT_PROJECT_ROOT: `${folder}/repositories`, GIT_HTTP_EXPORT_ALL: '1', PATH_INFO: path, QUERY_STRING: url.search.slice(1), REQUEST_METHOD: req.method,
        CONTENT_TYPE: req.headers['content-type'] ?? '', CONTENT_LENGTH: String(req.body.length), HTTP_CONTENT_ENCODING: req.headers['content-encoding'] ?? '',
        GIT_PROTOCOL: req.headers['git-protocol'] ?? '', REMOTE_USER: 'e2e', REMOTE_ADDR: '127.0.0.1', GIT_CONFIG_NOSYSTEM: '1', GIT_CONFIG_COUNT: '1', GIT_CONFIG_KEY_0: 'safe.directory', GIT_CONFIG_VALUE_0: '*'
      },
      stdio: ['pipe', 'pipe', 'inherit']
    })
    const out = []
    cgi.stdout.on('data', chunk => out.push(chunk))
    cgi.on('error', reject)
    cgi.on('close', () => {
      const all = Buffer.concat(out)
      const end = all.indexOf('\r\n\r\n')
      const headers = Object.fromEntries(all.subarray(0, end).toString().split('\r\n').map(line => line.split(/:\s*/, 2)))
      const status = parseInt(headers.Status ?? '200')
      delete headers.Status
      res.writeHead(status, headers)
      res.end(all.subarray(end + 4))
      resolve()
    })
    cgi.stdin.on('error', () => {})
    cgi.stdin.end(req.body)
  })
}

// tiny is a package as npm packs it, made here so that no file of the kind need be kept.
function tarball () {
  const files = { 'package/package.json': JSON.stringify({ name: 'e2e-tiny', version: '1.0.0', main: 'index.js' }), 'package/index.js': 'module.exports = "installed"\n' }
  const blocks = []
  for (const [name, text] of Object.entries(files)) {
    const header = Buffer.alloc(512)
    header.write(name)
    header.write('0000644\0' + '0000000\0' + '0000000\0', 100)
    header.write(text.length.toString(8).padStart(11, '0') + '\0' + '00000000000\0' + '        0', 124)
    header.write('ustar\0' + '00', 257)
    header.write(header.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, '0') + '\0 ', 148)
    blocks.push(header, Buffer.concat([Buffer.from(text), Buffer.alloc((512 - text.length % 512) % 512)]))
  }
  return gzipSync(Buffer.concat([...blocks, Buffer.alloc(1024)]))
}

function npm (req, res, url) {
  const tiny = tarball()
  const integrity = 'sha512-' + createHash('sha512').update(tiny).digest('base64')
  const tar = '/e2e-tiny/-/e2e-tiny-1.0.0.tgz'
  const version = { name: 'e2e-tiny', version: '1.0.0', main: 'index.js', dist: { tarball: `https://registry.npmjs.org${tar}`, integrity, shasum: createHash('sha1').update(tiny).digest('hex') } }
  const answers = {
    '/-/whoami': { username: 'e2e-user' },
    '/-/ping': {},
    '/e2e-tiny': { _id: 'e2e-tiny', name: 'e2e-tiny', 'dist-tags': { latest: '1.0.0' }, versions: { '1.0.0': version }, time: { '1.0.0': '2026-01-01T00:00:00Z' } }
  }
  if (req.method === 'GET' && url.pathname === tar) {
    res.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': tiny.length })
    return res.end(tiny)
  }
  req.method === 'GET' && answers[url.pathname] ? json(res, 200, answers[url.pathname]) : json(res, 404, { error: 'Not found' })
}

// house is an upstream that does what a proxy has to bear.
function house (req, res, url) {
  const key = keys.house
  switch (url.pathname) {
    case '/echo': return json(res, 200, { method: req.method, url: req.url, headers: req.headers, body: req.body.toString('latin1') })
    case '/echo/gzip': {
      res.writeHead(200, { 'content-type': 'text/plain', 'content-encoding': 'gzip' })
      return res.end(gzipSync(`the key is ${key}`))
    }
    case '/echo/brotli': // not so: what can't be read must not pass
      res.writeHead(200, { 'content-type': 'text/plain', 'content-encoding': 'zz' })
      return res.end(`the key is ${key}`)
    case '/echo/header': return json(res, 200, {}, { 'x-key': key, 'x-key-64': Buffer.from(`a:${key}`).toString('base64') })
    case '/echo/status':
      res.writeHead(418, `key ${key}`)
      return res.end()
    case '/echo/trailer':
      res.writeHead(200, { trailer: 'X-Key' })
      res.write('see the trailer')
      res.addTrailers({ 'X-Key': key })
      return res.end()
    case '/cookie': return json(res, 200, {}, { 'set-cookie': `session=${key}` })
    case '/redirect': return json(res, 307, {}, { location: `${origins.elsewhere}/found?key=${key}` })
    case '/forever': return events(res, n => `data: ${n}\n\n`, 20)
    case '/reset': return res.socket.destroy()
    case '/hang': return
    case '/pieces': { // in the raw, byte by byte
      const text = `the key is ${key}.`
      res.writeHead(200, { 'content-type': 'text/plain' })
      for (let i = 0; i < text.length; i++) setTimeout(() => i + 1 < text.length ? res.write(text[i]) : res.end(text[i]), 2 * i)
      return
    }
  }
  json(res, 404, { error: 'Not found' })
}

// authority makes a certificate for all the names, and the authority that signs it.
function authority (addresses) {
  const names = Object.values(services).flatMap(s => s.names).map(name => `DNS:${name}`).concat(addresses.map(a => `IP:${a}`))
  const openssl = (...args) => execFileSync('openssl', args, { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] })
  const fresh = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-batch']
  openssl('req', '-x509', ...fresh, '-keyout', 'ca.key', '-out', 'ca.pem', '-days', '2', '-subj', '/CN=e2e fake authority', '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign')
  openssl('req', ...fresh, '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=e2e fake services')
  writeFileSync(`${folder}/server.ext`, `subjectAltName=${names.join(',')}\nextendedKeyUsage=serverAuth\n`)
  openssl('x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '2', '-extfile', 'server.ext', '-out', 'server.pem')
  return { cert: readFileSync(`${folder}/server.pem`), key: readFileSync(`${folder}/server.key`) }
}

const listen = (server, port, address) => new Promise((resolve, reject) => server.once('error', reject).listen(port, address, () => resolve(server.address().port)))

const own = Object.fromEntries(Object.keys(services).map((name, i) => [name, `127.0.1.${i + 1}`])) // one address each: a URL tells them apart
const tls = authority([...Object.values(own), ...publicAddress ? [publicAddress] : []])
const origins = {}
for (const name of Object.keys(services)) {
  const { plain, names } = services[name]
  const port = await listen(plain ? http.createServer(handler(name)) : https.createServer(tls, handler(name)), 0, plain ? '127.0.0.1' : own[name])
  origins[name] = plain ? `http://127.0.0.1:${port}` : publicAddress ? `https://${names[0]}` : `https://${own[name]}:${port}`
}
if (publicAddress) await listen(https.createServer(tls, handler()), 443, publicAddress)
writeFileSync(`${folder}/received.jsonl`, '')
writeFileSync(`${folder}/verdicts.jsonl`, '')
writeFileSync(`${folder}/origins.json`, JSON.stringify(origins)) // the last: it says that all is ready
