// Commands with a key in their environment: real ones use it, what they print shows none of it, and they end with the
// lease.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { agent, command, hidden, home, keys, onlyTrue, origins, path, run, sleep } from './borrow.mjs'
import { main } from './lend.mjs'

const key = keys.house
const variable = 'HOUSE_KEY'

// begin starts a command and does not wait; what it prints so far is in out.
function begin (argv) {
  const child = spawn(argv[0], argv.slice(1), { cwd: home, env: { HOME: home, PATH: path }, stdio: 'pipe' })
  const running = { child, out: '', err: '', ended: new Promise(resolve => child.on('close', (code, signal) => resolve({ code, signal, at: Date.now() }))) }
  child.stdout.on('data', chunk => { running.out += chunk })
  child.stderr.on('data', chunk => { running.err += chunk })
  return running
}

async function until (what, true_) {
  for (let i = 0; i < 500; i++) {
    if (await true_()) return
    await sleep(10)
  }
  assert.fail(`never came true: ${what}`)
}

const quote = words => words.map(word => `'${word.replaceAll("'", "'\\''")}'`).join(' ')

main(async () => {
  const a = await agent('e2e-exec')
  const lease = await a.lease('exec-e2e')
  assert.equal(lease.delivery, 'exec', 'without asking, the delivery for a credential that commands are to use')
  hidden(JSON.stringify(lease))
  const { command_prefix: prefix, env_names: names } = lease.use
  assert.deepEqual(names, [variable])
  const within = (args, options) => run(prefix[0], [...prefix.slice(1), ...args], options)
  const sh = (script, options) => within(['sh', '-c', script], options)
  const shows = async (script, pattern, options) => {
    const got = await sh(script, options)
    hidden(got.all)
    assert.match(got.out, pattern, `${script}: ${got.all}`)
    return got
  }

  // A real program uses the key, and its upstream shows it.
  const since = Date.now()
  const echoed = await shows(`curl -sSf -H "X-House-Key: $${variable}" ${origins.house}/echo`, /x-house-key/)
  assert.equal(echoed.code, 0)
  onlyTrue('house', since)

  // The key as it is likely to be printed by accident.
  await shows(`printenv ${variable}`, /./)
  await shows('env', new RegExp(`${variable}=.`))
  for (const phase of ['', 'x', 'xx']) await shows(`printf '%s' "${phase}$${variable}" | base64 -w0`, /./)
  await shows(`printf '%s' "$${variable}" | od -An -v -tx1 | tr -d ' \\n'`, /./)
  await shows(`printf '%s' "$${variable}" | sed 's/./&\\n/g' | while read -r c; do printf '%s' "$c"; sleep 0.002; done; echo .`, /\.\n$/)
  await shows(`echo "$${variable}" >&2; echo said`, /said/)
  await shows(`printf 'user:%s' "$${variable}" | base64 -w0; echo`, /./)

  // What goes on and what does not.
  await shows('env | grep ^KEYLEASE_ || echo none', /^none\n$/, { env: { KEYLEASE_AS: 'e2e-exec', KEYLEASE_LOG__LEVEL: 'debug' } })
  await shows('read line; echo "read: $line"', /^read: hello\n$/, { input: 'hello\n' })
  for (const [script, code] of [['exit 0', 0], ['exit 7', 7], ['kill -TERM $$', 143], ['kill -KILL $$', 137]]) {
    assert.equal((await sh(script)).code, code, script)
  }
  writeFileSync(`${home}/plain-file`, 'no program\n', { mode: 0o600 })
  assert.equal((await within(['/nonexistent/program'])).code, 127)
  assert.equal((await within([`${home}/plain-file`])).code, 126)

  // At a terminal the command has one too; a prompt is there before it is answered.
  const script = words => begin(['script', '-qec', words, '/dev/null'])
  const terminal = script(quote([...prefix, 'sh', '-c', `test -t 0 && test -t 1 && printf 'name? '; read name; echo "got $name, $${variable}"; stty size >/dev/null && echo sized; exit 5`]))
  await until('the prompt shows', () => terminal.out.includes('name? '))
  terminal.child.stdin.write('me\n')
  const { code } = await terminal.ended
  hidden(terminal.out)
  assert.match(terminal.out, /got me, .+[\s\S]*sized/)
  assert.equal(code, 5)

  // As a file: only while the command runs, and only for its owner.
  const filed = await run(prefix[0], [...prefix.slice(1, -1), '--file', 'KEY_FILE', '--', 'sh', '-c', `stat -c '%a %n' "$KEY_FILE"; test "$(cat "$KEY_FILE")" = "$(cat ${process.env.E2E_FAR}/house-key)" && echo same; printenv ${variable} || echo not in the environment`])
  hidden(filed.all)
  const [, mode, file] = filed.out.match(/^(\d+) (.*)$/m) ?? assert.fail(filed.all)
  assert.equal(mode, '600')
  assert.match(filed.out, /same\nnot in the environment/)
  assert.ok(!existsSync(file), `${file} is still there`)

  // By name: the lease is opened for the command and ends with it. (This agent's own is joined, so another asks.)
  const other = (...args) => run(command, args)
  const named = await other('exec', '--as', 'e2e-exec-2', '--credential', 'exec-e2e', '--', 'sh', '-c', `test -n "$${variable}" && echo there`)
  assert.equal(named.out, 'there\n', named.all)
  const fixed = await other('run', '--as', 'e2e-exec-2', 'whoami-at-the-house')
  hidden(fixed.all)
  assert.match(fixed.out, /x-house-key/, fixed.all)
  await until('nothing is lent for these any more', async () =>
    (await a.call('list_credentials', { match: 'exec-e2e' })).credentials[0].leases_in_use === 1) // our own

  // The lease ends: so does the command, and says why.
  const long = begin([...prefix, 'sh', '-c', 'trap "echo told; exit 9" TERM; echo up; while :; do sleep 0.05; done'])
  await until('it is up', () => long.out.includes('up'))
  await a.release(lease)
  const released = Date.now()
  const { at } = await long.ended
  console.log(`the command ended ${at - released} ms after the release: ${long.err}`)
  assert.match(long.out, /told/)
  assert.match(long.err, /released/)
  assert.ok(at - released < 2000)
  const after = await sh('echo never')
  assert.notEqual(after.code, 0)
  assert.equal(after.out, '')
  hidden(after.all)
  await a.close()
})
