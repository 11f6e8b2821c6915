// Programs that people use, through the proxy: each works with the handle, and no longer once the lease has ended.
// Usage: through.mjs CLIENT. Before that each shows on the far side itself that the test can tell: there the true key
// is taken and another is not.
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import Anthropic from '@anthropic-ai/sdk'
import OpenAI from 'openai'
import { agent, far, hidden, home, keys, ok, onlyTrue, origins, run, sleep, verdicts } from './borrow.mjs'
import { main } from './lend.mjs'

const wrong = 'not-the-key-but-as-long-as-one-may-be'
const ask = [{ role: 'user', content: 'hello' }]

// A client is asked to work(base, key, use): what it does must fail by throwing, with refused in what it threw.
// use is what lease_credential said; undefined where the client goes to the service itself.
const clients = {
  openai: {
    credential: 'openai-e2e',
    base: `${origins.openai}/v1`,
    env: ['OPENAI_API_KEY', 'OPENAI_BASE_URL'],
    client: (baseURL, apiKey) => new OpenAI({ baseURL, apiKey, maxRetries: 0 }),
    async work (base, key) {
      const client = this.client(base, key)
      assert.equal((await client.models.list()).data[0].id, 'fake')
      const answer = await client.chat.completions.create({ model: 'fake', messages: ask })
      assert.equal(answer.choices[0].message.content, 'Hello from the fake.')
      let text = ''
      for await (const chunk of await client.chat.completions.create({ model: 'fake', messages: ask, stream: true })) text += chunk.choices[0].delta.content
      assert.equal(text, 'Hello from the fake.')
    },
    once: (base, key) => clients.openai.client(base, key).models.list(),
    forever: (base, key) => clients.openai.client(base, key).chat.completions.create({ model: 'forever', messages: ask, stream: true }),
    async more (base, key) {
      const client = this.client(base, key)
      for (const model of ['echo', 'gzip']) {
        const answer = await client.chat.completions.create({ model, messages: ask })
        hidden(JSON.stringify(answer))
        assert.match(answer.choices[0].message.content, /your key is .+/)
      }
      let text = ''
      for await (const chunk of await client.chat.completions.create({ model: 'echo', messages: ask, stream: true })) text += chunk.choices[0].delta.content
      hidden(text)
      assert.match(text, /^your key is ./)
      const refused = await client.chat.completions.create({ model: 'refuse', messages: ask }).then(() => assert.fail('not refused'), err => err)
      assert.equal(refused.status, 401)
      hidden(String(refused.message) + JSON.stringify(refused.error))
      const reset = await client.chat.completions.create({ model: 'reset', messages: ask }).then(() => assert.fail('not reset'), err => err)
      assert.equal(reset.status, 502)
      hidden(String(reset.message) + JSON.stringify(reset.error))
      const away = await fetch(`${base}/chat/completions`, { method: 'POST', redirect: 'manual', headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' }, body: JSON.stringify({ model: 'redirect', messages: ask }) })
      hidden(JSON.stringify([...away.headers]) + await away.text())
    }
  },
  anthropic: {
    credential: 'anthropic-e2e',
    base: origins.anthropic,
    env: ['ANTHROPIC_API_KEY', 'ANTHROPIC_BASE_URL'],
    client: (baseURL, apiKey) => new Anthropic({ baseURL, apiKey, maxRetries: 0 }),
    async work (base, key) {
      const client = this.client(base, key)
      assert.equal((await client.models.list()).data[0].id, 'fake')
      const answer = await client.messages.create({ model: 'fake', max_tokens: 9, messages: ask })
      assert.equal(answer.content[0].text, 'Hello from the fake.')
      assert.equal(await client.messages.stream({ model: 'fake', max_tokens: 9, messages: ask }).finalText(), 'Hello from the fake.')
    },
    once: (base, key) => clients.anthropic.client(base, key).models.list(),
    forever: (base, key) => clients.anthropic.client(base, key).messages.create({ model: 'forever', max_tokens: 9, messages: ask, stream: true }),
    async more (base, key) {
      hidden(JSON.stringify(await this.client(base, key).messages.create({ model: 'echo', max_tokens: 9, messages: ask })))
    }
  },
  curl: {
    credential: 'house-e2e',
    base: origins.house,
    async work (base, key, use) {
      const header = use ? `Authorization: Bearer ${key}` : `X-House-Key: ${key}`
      const got = await curl(base, '/echo?q=1', use, header, '-X', 'POST', '-d', 'a body', '-H', 'X-Mine: kept')
      const seen = JSON.parse(got)
      assert.equal(seen.body, 'a body')
      assert.equal(seen.headers['x-mine'], 'kept')
      assert.equal(seen.url, '/echo?q=1')
      if (use) { // the handle also goes where the key would, and into the path
        await curl(base, '/echo', use, `X-House-Key: ${key}`)
        await curl(base, '/echo', use, `X-Api-Key: ${key}`)
        await ok('curl', ['-sSf', '-u', `anyone:${key}`, `${base}/echo`])
        await ok('curl', ['-sSf', `${new URL(base).origin}/l/${key}/echo`])
      }
    },
    once: (base, key, use) => curl(base, '/echo', use, use ? `Authorization: Bearer ${key}` : `X-House-Key: ${key}`),
    async more (base, key) {
      const auth = ['-H', `Authorization: Bearer ${key}`]
      const tell = async (path, ...args) => { // all that curl shows, whatever it thinks of the answer
        const got = await run('curl', ['-sS', '-i', '--max-time', '10', ...auth, ...args, base + path])
        hidden(got.all)
        return got.all
      }
      assert.match(await tell('/echo'), / 200 /)
      assert.match(await tell('/pieces'), /the key is .+\./)
      assert.match(await tell('/echo/gzip', '--compressed'), /the key is/)
      assert.match(await tell('/echo/gzip'), /the key is/)
      assert.match(await tell('/echo/brotli', '-H', 'Accept-Encoding: zz'), / 502 /)
      await tell('/echo/header')
      await tell('/echo/status')
      assert.match(await tell('/echo/trailer'), / 200 /)
      assert.doesNotMatch(await tell('/cookie'), /set-cookie/i)
      assert.match(await tell('/redirect'), / 307 /)
      assert.match(await tell('/reset'), / 502 /)
      const since = Date.now()
      await tell('/redirect', '-L')
      assert.match(await tell('/../echo', '--path-as-is'), / 40[03] /)
      assert.match(await tell('/%2e%2e/echo', '--path-as-is'), / 40[03] /)
      assert.match(await tell('/hidden'), / 403 /)
      assert.match(await tell('/echo', '-X', 'DELETE'), / 403 /)
      assert.match(await tell('/echo', '-X', 'CONNECT'), / 40[0-5] /)
      assert.match(await tell('/echo', '-H', 'X-HTTP-Method-Override: DELETE'), / (200|40[03]) /)
      for (const seen of verdicts(since).filter(v => v.service === 'house' && !v.cut)) assert.ok(['/redirect', '/echo'].includes(seen.url) && seen.method === 'GET', `${seen.method} ${seen.url} reached the upstream`)
      for (const seen of verdicts(since).filter(v => v.service === 'elsewhere' && !v.cut)) assert.ok(seen.ok && !seen.url.includes(keys.house), 'the redirect carried the key')
      assert.match(await tell('/echo', '-H', 'Connection: Upgrade', '-H', 'Upgrade: websocket', '-H', 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==', '-H', 'Sec-WebSocket-Version: 13', '--http1.1'), /[Ww]eb[Ss]ocket/)
    }
  },
  git: {
    credential: 'github-e2e',
    base: origins.github.replace('api.', ''),
    async work (base, key, use) {
      for (const at of ways(base, key, use)) await works(insteadOf(at), use)
    },
    async once (base, key, use) {
      let failed // the same, whichever way
      for (const at of ways(base, key, use)) {
        const done = await git([...insteadOf(at), 'ls-remote', 'https://github.com/e2e/tiny'], use).catch(err => { failed = err; return '' })
        assert.ok(!failed || !done, 'one way is refused, and another is not')
      }
      if (failed) throw failed
    }
  },
  gh: {
    credential: 'github-e2e',
    base: origins.github,
    async work (base, key, use) {
      const gh = (...args) => ghAt(key, use, ...args)
      assert.equal(JSON.parse(await gh('api', 'user')).login, 'e2e-user')
      assert.equal(JSON.parse(await gh('api', 'repos/e2e/tiny')).full_name, 'e2e/tiny')
      const graphql = ['api', 'graphql', '-f', 'query={viewer{login}}'] // can do anything: kept apart unless an operator allows it
      if (use) await assert.rejects(gh(...graphql), /403[^]*not_allowed|not_allowed[^]*403/)
      else assert.match(await gh(...graphql), /e2e-user/)
    },
    once: (base, key, use) => ghAt(key, use, 'api', 'user')
  },
  npm: {
    credential: 'npm-e2e',
    base: origins.npm,
    async work (base, key, use) {
      assert.equal((await npmAt(base, key, use, ['whoami'])).out.trim(), 'e2e-user')
      assert.match((await npmAt(base, key, use, ['ping'])).all, /PONG/)
      assert.equal((await npmAt(base, key, use, ['view', 'e2e-tiny', 'version'])).out.trim(), '1.0.0')
      const project = mkdtempSync(`${home}/npm-`)
      writeFileSync(`${project}/package.json`, '{"private": true}')
      await npmAt(base, key, use, ['install', 'e2e-tiny'], project)
      assert.match(readFileSync(`${project}/node_modules/e2e-tiny/index.js`, 'utf8'), /installed/)
      if (use) assert.ok(!readFileSync(`${project}/package-lock.json`, 'utf8').includes(key), 'the handle is in package-lock.json')
    },
    once: (base, key, use) => npmAt(base, key, use, ['whoami'])
  }
}

// calls are one of each service, which needs nothing but the key.
const calls = {
  openai: ['GET', '/v1/models'],
  anthropic: ['GET', '/v1/models'],
  house: ['GET', '/echo'],
  github: ['GET', '/user'],
  npm: ['GET', '/-/whoami'],
  stripe: ['GET', '/v1/balance'],
  gitlab: ['GET', '/api/v4/user'],
  huggingface: ['GET', '/api/whoami-v2'],
  slack: ['POST', '/api/auth.test']
}
for (const service of ['stripe', 'gitlab', 'huggingface', 'slack']) {
  const [method, path] = calls[service]
  const once = async (base, key, use) => {
    const url = use ? new URL(path, base) : origins[service] + path
    const got = await ok('curl', ['-sS', '--cacert', `${far}/ca.pem`, '-w', '\n%{http_code}', '-X', method, '-H', `Authorization: Bearer ${key}`, String(url)], { direct: !use })
    if (!got.out.endsWith('\n200')) throw new Error(got.out)
  }
  clients[service] = { credential: `${service}-e2e`, work: once, once, base: origins[service] }
}

async function curl (base, path, use, header, ...args) {
  return (await ok('curl', ['-sSf', '-H', header, ...args, base + path], { direct: !use })).out
}

// ways are where git finds the key's place: the password in an address, which it sends when it is asked; with a handle
// also the beginning of the path.
function ways (base, key, use) {
  const { origin } = new URL(base)
  return [origin.replace('://', `://x-access-token:${key}@`), ...use ? [`${origin}/l/${key}`] : []]
}

const insteadOf = at => ['-c', `url.${at}/.insteadOf=https://github.com/`]

async function git (args, use, cwd) {
  return (await ok('git', args, { cwd, direct: !use, env: { GIT_TERMINAL_PROMPT: '0', GIT_CONFIG_NOSYSTEM: '1', ...use ? {} : { GIT_SSL_CAINFO: `${far}/ca.pem` } } })).out
}

async function works (config, use) {
  const folder = mkdtempSync(`${home}/git-`)
  assert.match(await git([...config, 'ls-remote', 'https://github.com/e2e/tiny'], use), /refs\/heads\/main/)
  await git([...config, 'clone', '-q', 'https://github.com/e2e/tiny', `${folder}/tiny`], use)
  assert.equal(readFileSync(`${folder}/tiny/README`, 'utf8'), 'a fake repository\n')
  await git([...config, 'fetch', '-q', 'origin'], use, `${folder}/tiny`)
}

async function ghAt (key, use, ...args) {
  const config = mkdtempSync(`${home}/gh-`)
  if (use) writeFileSync(`${config}/config.yml`, `http_unix_socket: ${use.socket}\n`)
  return (await ok('gh', args, { direct: !use, env: { GH_CONFIG_DIR: config, GH_TOKEN: key, GH_NO_UPDATE_NOTIFIER: '1', ...use ? {} : { SSL_CERT_FILE: `${far}/ca.pem` } } })).out
}

async function npmAt (base, key, use, args, cwd = home) {
  const folder = mkdtempSync(`${home}/npmrc-`)
  const registry = base.replace(/\/*$/, '/')
  writeFileSync(`${folder}/npmrc`, `registry=${registry}\n${registry.replace(/^https?:/, '')}:_authToken=\${NPM_TOKEN}\nupdate-notifier=false\naudit=false\nfund=false\n`)
  return ok('npm', args, { cwd, direct: !use, env: { NPM_TOKEN: key, npm_config_userconfig: `${folder}/npmrc`, npm_config_cache: `${folder}/cache`, npm_config_fetch_retries: '0', ...use ? {} : { NODE_EXTRA_CA_CERTS: `${far}/ca.pem` } } })
}

// control: the client itself tells a true key from another, at the far side and without keylease.
async function control (client, service) {
  const since = Date.now()
  await client.work(client.base, keys[service])
  assert.ok(verdicts(since).some(v => v.service === service && v.ok), `${service} was never asked`)
  await assert.rejects(client.once(client.base, wrong), /401|Authentication failed/)
  assert.ok(verdicts(since).some(v => v.service === service && v.why === 'another key'), 'the far side took no offence')
}

// refusedAtOnce: the call that worked gets 403 from the moment that release has answered, and within 50 ms of it.
const refused = /403|forbidden/i

const figures = []

async function ends (a, client, service, name) {
  for (let tries = 1; ; tries++) {
    const lease = await a.lease(client.credential, { delivery: 'proxy' })
    const { base_url: base, api_key: key } = lease.use
    await client.once(base, key, lease.use) // the way is open
    await a.release(lease)
    const released = Date.now()
    await assert.rejects(client.once(base, key, lease.use), refused)
    const took = Date.now() - released
    if (client.forever) figures.push(`its next call was refused ${took} ms after the release`)
    if (took <= 50 || !client.forever) break
    assert.ok(tries < 5, `never within 50 ms of the release: ${took} ms`)
  }
  // The clients that are programs take longer to start than that: what the proxy does is seen by itself.
  for (let tries = 1; ; tries++) {
    const lease = await a.lease(client.credential, { delivery: 'proxy' })
    const [method, path] = calls[service]
    const probe = () => fetch(new URL(path, lease.use.base_url), { method, headers: { authorization: `Bearer ${lease.use.api_key}` } })
    const before = await probe()
    assert.equal(before.status, 200, await before.text())
    await a.release(lease)
    const released = Date.now()
    const answer = await probe()
    const took = Date.now() - released
    assert.equal(answer.status, 403)
    hidden(await answer.text())
    figures.push(`a request was refused ${took} ms after the release`)
    if (took <= 50) break
    assert.ok(tries < 5, `never within 50 ms of the release: ${took} ms`)
  }
  if (client.forever) await streamCut(a, client, service, lease => a.release(lease))
}

// streamCut: a stream that is open when the lease ends, ends with it.
async function streamCut (a, client, service, end, args = {}) {
  const since = Date.now()
  const lease = await a.lease(client.credential, { delivery: 'proxy', ...args })
  const stream = await client.forever(lease.use.base_url, lease.use.api_key)
  let seen = 0
  let ended
  const reading = (async () => {
    try { for await (const _ of stream) seen++ } catch (err) { ended = err }
    return Date.now()
  })()
  while (seen < 3) await sleep(5)
  await end(lease)
  const released = Date.now()
  const cut = await Promise.race([reading, sleep(5000)])
  assert.ok(cut, 'the stream goes on after the release')
  console.log(`the stream ended with ${ended ?? 'no error'}`)
  figures.push(`an open stream ended ${cut - released} ms after the ${args.ttl ? 'lease' : 'release'}`)
  assert.ok(cut - released <= 100, 'the stream was not cut at once')
  await sleep(100)
  assert.ok(verdicts(since).some(v => v.service === service && v.cut), 'the far side does not know that the stream is over')
}

main(async () => {
  const [name, how] = process.argv.slice(2)
  const client = clients[name]
  const service = { git: 'github', gh: 'github', curl: 'house' }[name] ?? name
  await control(client, service)
  if (how === 'control') return

  const a = await agent(`e2e-${name}`)
  if (how === 'expires') {
    await streamCut(a, client, service, lease => sleep(Date.parse(lease.expires_at) - Date.now()), { ttl: '2s' })
    console.log(figures.join('; '))
    return
  }
  const since = Date.now()
  const lease = await a.lease(client.credential)
  assert.equal(lease.delivery, 'proxy', 'the least exposing delivery is the one without asking')
  const { base_url: base, api_key: key, env } = lease.use
  hidden(JSON.stringify(lease))
  for (const variable of client.env ?? []) assert.ok([base, key].includes(env[variable]), `use.env has no ${variable}`)
  await client.work(base, key, lease.use)
  onlyTrue(service, since)
  await client.more?.(base, key, lease.use)
  await ends(a, client, service, name)
  assert.equal((await a.release(lease)).status, 'released')
  await assert.rejects(client.once(base, key, lease.use), refused)
  await a.close()
  console.log(figures.join('; '))
})
