// The canary scan. Every key of this run has the canary in it. After everything was done, by all the other scripts and
// here what should not be done, it is looked for in every form in every place: it may be with the far side, in its
// slot, and in the environment of a command that was given it.
// Usage: canary.mjs misuse, canary.mjs administer, then canary.mjs scan LOG…, with the other places to search.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { appendFileSync, lstatSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { agent, command, far, forms, home, keys, path, run, sleep } from './borrow.mjs'
import { main } from './lend.mjs'

const { E2E_URL: url, E2E_TOKEN: token } = process.env
const canary = readFileSync(`${far}/canary`, 'utf8')
const key = keys.openai

const said = `${home}/said` // what keylease said, for the search

// misuse puts the key where none belongs. What the caller itself writes into a purpose or a path is kept as it is, so
// it is not put there: an agent that never saw the key can't.
async function misuse () {
  const a = await agent('e2e-canary', { noted: false }) // what we ourselves say holds keys
  const tries = [
    { credential: key }, { credential: 'value-e2e', ttl: key }, { credential: 'value-e2e', delivery: key }, { credential: 'value-e2e', [key]: 1 }, { lease_id: key },
    { approval_id: key }, { credential: [key] }, { credential: 'value-e2e', ttl: { [key]: key } }, { credential: key.repeat(100) }
  ]
  const answers = []
  const attempt = async (tool, args) => {
    const { refused, error } = await a.call(tool, args).catch(err => ({ refused: true, error: { message: String(err), code: 'protocol' } }))
    assert.ok(refused, `${tool} ${Object.keys(args)} was not refused`)
    assert.notEqual(error.code, 'protocol', error.message) // the client reads a refusal, and does not choke on it
    answers.push(JSON.stringify(error))
  }
  for (const args of tries) await attempt('lease_credential', args)
  await attempt('release_lease', { lease_id: key })
  await attempt('list_credentials', { cursor: key })
  await attempt('list_credentials', { limit: key })
  const bodies = [`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"${key}"}}`, `{"${key}":`, key, `{"jsonrpc":"2.0","id":1,"method":"${key}"}`]
  for (const authorization of [`Bearer ${token}`, `Bearer ${key}`, `Basic ${Buffer.from(`x:${key}`).toString('base64')}`]) {
    for (const body of bodies) {
      const answer = await fetch(`${url}/mcp`, { method: 'POST', body, headers: { authorization, 'content-type': 'application/json', accept: 'application/json, text/event-stream' } })
      answers.push(await answer.text() + JSON.stringify([...answer.headers]))
    }
  }
  const lease = await a.lease('house-e2e')
  const { origin } = new URL(lease.use.base_url)
  for (const [at, headers] of [['/echo', { authorization: `Bearer ${key}` }], ['/echo', { 'x-api-key': key }], [`/l/${key}/echo`, {}], [`/echo?api_key=${key}`, { authorization: `Bearer ${lease.use.api_key}` }]]) {
    const answer = await fetch(origin + at, { headers })
    answers.push(await answer.text() + JSON.stringify([...answer.headers]))
    assert.ok(answer.status >= 400, `${answer.status} for ${at.replaceAll(key, '[the key]')}`)
  }
  const value = await a.lease('value-e2e', { delivery: 'value' })
  assert.equal(value.value, keys.value)
  await a.release(value)
  await a.release(lease)
  appendFileSync(said, answers.join('\n') + '\n')
  await a.close()
}

// administer is what an operator does with keys, some of it wrong. No program that speaks MCP may stand behind it.
async function administer () {
  const wants = async (code, args, input) => {
    const got = await run(command, args, { input })
    appendFileSync(said, `$ keylease ${args.join(' ')}\n${got.all}\n`)
    assert.equal(got.code === 0, code === 0, got.all)
    return got
  }
  await wants(0, ['put', 'put-e2e', '--type', 'api-key'], keys.value + '\n')
  await wants(0, ['rotate', 'put-e2e'], keys.rotated + '\n')
  await wants(1, ['put', 'put-bad', '--type', 'ssh-key'], keys.value + '\n')
  await wants(1, ['put', 'put-bad', '--type', 'database-url'], `postgres://u:${keys.value}@[/x\n`)
  const wrong = `${far}/wrong.yaml` // not ours: the operator's file holds keys
  for (const text of [`credentials:\n  - {name: w, type: ssh-key, value: ${key}}\n`, `credentials:\n  - {name: w, type: api-key, valeu: ${key}}\n`, `credentials:\n  - {name: w, value: [${key}\n`,
    `credentials:\n  - {name: w, type: api-key, value: "${key} "}\n`, `credentials: ${key}\n`, `- ${key}\n`]) {
    writeFileSync(wrong, text)
    await wants(1, ['seed', wrong])
  }
  for (const view of [['show', 'put-e2e'], ['show', 'openai-e2e'], ['ls'], ['leases'], ['token', 'ls'], ['approvals']]) await wants(0, [...view, '--json'])
}

const wanted = [...new Set([...forms(canary), ...Object.values(keys).flatMap(forms)])].map(form => Buffer.from(form))

// found says whether a file or text has the canary in it.
function found (bytes) {
  return wanted.some(form => bytes.includes(form))
}

function * files (at) {
  const info = lstatSync(at, { throwIfNoEntry: false })
  if (info?.isFile()) yield at
  if (info?.isDirectory()) for (const name of readdirSync(at)) yield * files(`${at}/${name}`)
}

function search (places) {
  const hits = []
  let count = 0
  let bytes = 0
  for (const place of places) {
    for (const file of files(place)) {
      const text = readFileSync(file)
      count++
      bytes += text.length
      if (!found(text)) continue
      hits.push(file)
      const form = wanted.find(form => text.includes(form))
      const at = text.indexOf(form)
      if (!file.includes('/planted-')) console.log(`${file}: ${text.toString('latin1', Math.max(0, at - 200), at)}[HERE]${text.toString('latin1', at + form.length, at + form.length + 100)}`)
    }
  }
  return { hits, count, bytes }
}

// processes are all that run, with what can be read of them from outside.
function processes () {
  return readdirSync('/proc').filter(name => /^\d+$/.test(name)).flatMap(pid => {
    try {
      return [{ pid, exe: readlinkSync(`/proc/${pid}/exe`), read: ['environ', 'cmdline', 'comm'].map(file => readFileSync(`/proc/${pid}/${file}`)) }]
    } catch { return [] }
  })
}

async function scan (logs) {
  // A command that has its key, while we look.
  const child = spawn(command, ['exec', '--as', 'e2e-canary', '--credential', 'exec-e2e', '--', 'sh', '-c', 'echo $$; read -r line'], { cwd: home, env: { HOME: home, PATH: path }, stdio: ['pipe', 'pipe', 'inherit'] })
  const pid = await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).once('line', resolve) // it may come in pieces: its end could have been the key's beginning
    child.once('exit', () => reject(new Error('the command did not start')))
  })
  const all = processes()
  const holders = all.filter(p => p.read.some(text => found(text)))
  const ours = all.filter(p => p.exe.startsWith(command))
  assert.ok(ours.length >= 2, 'the daemon and the command\'s parent were not found')
  console.log(`${all.length} processes, ${ours.length} of them keylease`)
  assert.deepEqual(holders.map(p => p.pid), [pid], 'the command alone has the key in its environment')
  child.kill('SIGTERM')
  await new Promise(resolve => child.once('exit', resolve))

  const trail = await run(command, ['audit', '--json'])
  assert.equal(trail.code, 0, trail.all)
  appendFileSync(`${home}/trail.json`, trail.all)
  for (const at of ['/metrics', '/healthz', '/readyz']) {
    const answer = await fetch(url + at, { headers: { authorization: `Bearer ${token}` } })
    appendFileSync(`${home}/metrics`, `${at} ${answer.status}\n${await answer.text()}\n`)
  }
  await sleep(200)

  // The search finds what is there to be found.
  for (const [i, form] of [keys.github, `x${keys.npm}`, `xx${keys.slack}`].entries()) writeFileSync(`${home}/planted-${i}`, i === 0 ? Buffer.from(form).toString('hex') : Buffer.from(form).toString('base64'))
  const places = [home, ...logs, `${far}/received.jsonl`, `${far}/verdicts.jsonl`, ...readdirSync('/tmp').filter(name => name.startsWith('keylease')).map(name => `/tmp/${name}`)]
  const { hits, count, bytes } = search(places)
  console.log(`searched ${count} files, ${bytes} bytes`)
  const planted = hits.filter(file => file.startsWith(`${home}/planted-`))
  assert.equal(planted.length, 3, `of the planted forms only ${planted} were found`)
  assert.deepEqual(hits.filter(file => !planted.includes(file)), [], 'the canary is where it must not be')

  // Handles open a door as well: the far side and keylease's own files know none of them.
  const handles = readFileSync(`${home}/handles`, 'utf8').split('\n').filter(Boolean)
  const own = [`${home}/.local/share/keylease`, `${home}/.config/keylease`, `${home}/trail.json`, `${home}/metrics`, ...logs, `${far}/received.jsonl`]
  for (const place of own) {
    for (const file of files(place)) {
      const text = readFileSync(file)
      assert.ok(!handles.some(handle => text.includes(handle) || text.includes(Buffer.from(handle).toString('base64').slice(0, 40))), `a handle is in ${file}`)
    }
  }
  assert.ok(handles.length > 0, 'no handles were noted')
  assert.ok(readFileSync(`${far}/received.jsonl`, 'utf8').includes('[the key]'), 'no request was seen with its key')
  console.log(`${handles.length} handles`)
}

const [what, ...logs] = process.argv.slice(2)
main(() => ({ misuse, administer, scan })[what](logs))
