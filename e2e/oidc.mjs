// A daemon that trusts one OpenID Connect issuer, and that issuer: oidc-provider, on loopback. An MCP client finds it by
// itself, from keylease's 401, and gets a real token; every token that is not exactly right is refused, and so is
// everybody while the issuer can't be asked. Usage: oidc.mjs
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHmac, createPublicKey, generateKeyPairSync, randomUUID, sign } from 'node:crypto'
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Client, ClientCredentialsProvider, StreamableHTTPClientTransport } from '@modelcontextprotocol/client'
import Provider from 'oidc-provider'
import { lend, main } from './lend.mjs'

const { E2E_KEYLEASE: keylease, HOME, PATH } = process.env
const secret = 'fake-client-secret-of-e2e'

// issuer serves an oidc-provider whose signing key can be replaced while it runs.
async function issuer () {
  const self = { seen: [], life: 600, down: false }
  const server = createServer((req, res) => {
    self.seen.push({ method: req.method, url: req.url, authorization: req.headers.authorization })
    if (self.down) return res.writeHead(500).end()
    self.handle(req, res)
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  self.url = `http://127.0.0.1:${server.address().port}`
  self.rotate = () => {
    self.kid = randomUUID()
    self.key = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey
    const jwk = { ...self.key.export({ format: 'jwk' }), kid: self.kid, alg: 'RS256', use: 'sig' }
    self.handle = new Provider(self.url, {
      jwks: { keys: [jwk] },
      clients: [{ client_id: 'agent-7', client_secret: secret, grant_types: ['client_credentials'], redirect_uris: [], response_types: [] }],
      scopes: ['keylease:lease', 'keylease:list'],
      features: {
        devInteractions: { enabled: false },
        clientCredentials: { enabled: true },
        resourceIndicators: {
          enabled: true,
          getResourceServerInfo: (ctx, resource) => ({
            scope: 'keylease:lease keylease:list', audience: resource, accessTokenTTL: self.life, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } }
          })
        }
      }
    }).callback()
  }
  self.rotate()
  // token asks for one as any OAuth client does.
  self.token = async (resource, scope = 'keylease:lease keylease:list') => {
    const answer = await fetch(`${self.url}/token`, {
      method: 'POST',
      headers: { authorization: `Basic ${btoa(`agent-7:${secret}`)}` },
      body: new URLSearchParams({ grant_type: 'client_credentials', resource, scope })
    })
    const body = await answer.json()
    assert.equal(answer.status, 200, JSON.stringify(body))
    return body.access_token
  }
  return self
}

const part = value => Buffer.from(JSON.stringify(value)).toString('base64url')
const read = (token, n) => JSON.parse(Buffer.from(token.split('.')[n], 'base64url'))

// changed is token with other claims, signed with the issuer's own key: what no issuer gives.
function changed (idp, token, claims, header = {}) {
  const text = `${part({ ...read(token, 0), ...header })}.${part({ ...read(token, 1), ...claims })}`
  return `${text}.${sign('sha256', Buffer.from(text), idp.key).toString('base64url')}`
}

// forged is token with another alg; by signs it.
function forged (token, alg, by) {
  const text = `${part({ ...read(token, 0), alg })}.${token.split('.')[1]}`
  return `${text}.${by(text)}`
}

async function freePort () {
  const s = createServer()
  await new Promise(resolve => s.listen(0, '127.0.0.1', resolve))
  const { port } = s.address()
  await new Promise(resolve => s.close(resolve))
  return port
}

async function daemon (idp, port, resource) {
  const home = mkdtempSync(join(tmpdir(), 'kl-oidc-'))
  const config = join(home, '.config/keylease')
  mkdirSync(config, { recursive: true, mode: 0o700 })
  writeFileSync(join(config, 'keylease.yaml'), JSON.stringify({
    http: `127.0.0.1:${port}`,
    resource,
    issuers: [{ issuer: idp.url, identities: [{ match: { client_id: ['agent-*'] }, name: 'idp/{client_id}' }] }]
  }), { mode: 0o600 })
  writeFileSync(join(config, 'policy.yaml'), JSON.stringify({
    version: 1, rules: [{ name: 'agents of the issuer', identities: ['idp/agent-*'], proof: 'oidc', credentials: ['openai-e2e'] }]
  }), { mode: 0o600 })
  copyFileSync(join(HOME, '../seed.yaml'), join(home, 'seed.yaml'))
  const env = { HOME: home, PATH }
  const child = spawn(keylease, ['serve', '--seed', join(home, 'seed.yaml')], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  let log = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', d => { log += d })
  const ended = new Promise(resolve => child.on('exit', resolve))
  const run = (...args) => new Promise((resolve, reject) => {
    const c = spawn(keylease, args, { env, stdio: ['ignore', 'pipe', 'inherit'] })
    let out = ''
    c.stdout.on('data', d => { out += d })
    c.on('exit', code => code === 0 ? resolve(JSON.parse(out)) : reject(new Error(`keylease ${args.join(' ')}: exit ${code}`)))
  })
  for (let i = 0; ; i++) {
    assert.ok(i < 200 && child.exitCode === null, `keylease serve does not come up: ${log}`)
    if (await fetch(`http://127.0.0.1:${port}/healthz`).then(r => r.ok, () => false)) break
    await sleep(100)
  }
  return { run, log: () => log, stop: async () => { child.kill(); await ended; rmSync(home, { recursive: true }) } }
}

async function trials (idp, other, port, resource, d) {
  // status is what keylease answers to a lease with this token.
  const status = async token => {
    const answer = await fetch(`http://127.0.0.1:${port}/mcp`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        accept: 'application/json, text/event-stream',
        'mcp-protocol-version': '2026-07-28',
        'mcp-method': 'tools/call',
        'mcp-name': 'lease_credential',
        ...(token && { authorization: `Bearer ${token}` })
      },
      body: JSON.stringify({
        jsonrpc: '2.0',
        id: 1,
        method: 'tools/call',
        params: {
          name: 'lease_credential',
          arguments: { credential: 'openai-e2e', purpose: 'e2e oidc' },
          _meta: {
            'io.modelcontextprotocol/protocolVersion': '2026-07-28',
            'io.modelcontextprotocol/clientCapabilities': {},
            'io.modelcontextprotocol/clientInfo': { name: 'oidc', version: '1' }
          }
        }
      })
    })
    return [answer.status, await answer.text(), answer.headers]
  }
  const wants = async (what, token, code) => {
    const [got, text] = await status(token)
    assert.equal(got, code, `${what}: ${text}`)
    assert.ok(code === 200 || !text.includes('sk-fake'), `${what}: the value came along`)
    console.log(`${what}: ${got}`)
  }

  // The SDK knows nothing but the address and the client's credentials: the rest is in keylease's 401.
  for (const mode of ['legacy', { pin: '2026-07-28' }]) {
    const authProvider = new ClientCredentialsProvider({ clientId: 'agent-7', clientSecret: secret, expectedIssuer: idp.url })
    const transport = new StreamableHTTPClientTransport(new URL(resource), { authProvider })
    const client = new Client({ name: 'oidc', version: '1' }, { versionNegotiation: { mode } })
    await client.connect(transport)
    await lend((name, args) => client.callTool({ name, arguments: args }), 'e2e oidc')
    await client.close()
  }
  console.log('the SDK found the issuer, got a token, leased and released')

  const good = await idp.token(resource)
  assert.equal(read(good, 0).typ, 'at+jwt')
  await wants('a real token', good, 200)
  await wants('a real token without the scope', await idp.token(resource, 'keylease:list'), 403)
  await wants('no token', undefined, 401)
  await wants('a real token for another audience', await idp.token('https://other.example/mcp'), 401)
  await wants('a real token of another issuer', await other.token(resource), 401)
  await wants('another issuer that calls itself ours', changed(other, await other.token(resource), { iss: idp.url }, { kid: idp.kid }), 401)
  await wants('alg none', forged(good, 'none', () => ''), 401)
  const pem = createPublicKey(idp.key).export({ type: 'spki', format: 'pem' })
  await wants('HS256 with the public key', forged(good, 'HS256', text => createHmac('sha256', pem).update(text).digest('base64url')), 401)
  const now = Math.floor(Date.now() / 1000)
  await wants('signed as it should be', changed(idp, good, {}), 200)
  await wants('future nbf', changed(idp, good, { nbf: now + 120 }), 401)
  await wants('no exp', changed(idp, good, { exp: undefined }), 401)
  await wants('no sub', changed(idp, good, { sub: undefined }), 401)
  await wants('a client that is mapped to nobody', changed(idp, good, { client_id: 'root' }), 401)
  await wants('a client whose name is a pattern', changed(idp, good, { client_id: 'agent-*' }), 401)
  await wants('a claim changed under the signature', `${good.split('.')[0]}.${part({ ...read(good, 1), client_id: 'agent-8' })}.${good.split('.')[2]}`, 401)
  idp.life = 2
  const short = await idp.token(resource)
  await wants('a short-lived real token', short, 200)
  await sleep(2100)
  await wants('the same, expired', short, 401)
  idp.life = 600

  idp.rotate()
  await sleep(10_500) // keys are fetched at most every 10 s
  await wants('after the key was rotated', await idp.token(resource), 200)
  await wants('of the key before', good, 401)
  idp.rotate()
  idp.down = true
  await sleep(10_500)
  idp.down = false
  const fresh = await idp.token(resource)
  idp.down = true
  await wants('a new key, and the issuer is down', fresh, 503)
  idp.down = false
  await sleep(10_500)
  await wants('when it is back', fresh, 200)

  const { entries } = await d.run('audit', '--json')
  const granted = entries.filter(e => e.event === 'lease.created')
  assert.ok(granted.length === 7 && granted.every(e => e.identity.name === 'idp/agent-7' && e.identity.proof === 'oidc' && e.identity.by === `oidc:${idp.url}#agent-7`),
    JSON.stringify(granted.map(e => e.identity)))
  const reasons = new Set(entries.filter(e => e.event === 'auth.failed').map(e => e.details.reason))
  console.log('the trail says why:', [...reasons].join(', '))
  assert.ok(reasons.size >= 10)
  // What keylease sent: nothing of its callers'. (The SDK and this script asked for tokens, with the client's secret.)
  for (const q of idp.seen.filter(q => q.url.startsWith('/jwks'))) assert.deepEqual(q, { method: 'GET', url: '/jwks', authorization: undefined })
  for (const text of [JSON.stringify(entries), d.log()]) assert.ok(!text.includes(good.split('.')[2]) && !text.includes('sk-fake'))
}

main(async () => {
  const [idp, other, port] = [await issuer(), await issuer(), await freePort()]
  const resource = `http://127.0.0.1:${port}/mcp`
  const d = await daemon(idp, port, resource)
  try {
    await trials(idp, other, port, resource, d)
  } catch (err) {
    console.error(d.log())
    throw err
  } finally {
    await d.stop()
  }
})
