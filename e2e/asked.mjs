// A person's yes, asked for through Codex: its app-server puts the form to us, as it does to its editors, and we are the
// person. Usage: asked.mjs approve|deny|decline|empty|wait stdio|http legacy|modern
import assert from 'node:assert/strict'
import { codex } from './appserver.mjs'
import { hidden, keys, note, ok, sleep } from './borrow.mjs'
import { main } from './lend.mjs'

const { E2E_KEYLEASE: command, E2E_URL: url } = process.env
const [how, kind, era] = process.argv.slice(2)
const who = `asked-${how}-${kind}-${era}`
const config = '[mcp_servers.keylease]\n' + {
  stdio: `command = "${command}"\nargs = ["mcp", "--as", "${who}"]\n`,
  http: `url = "${url}/mcp"\nbearer_token_env_var = "E2E_TOKEN"\n`
}[kind] + 'tool_timeout_sec = 120\n'
const purpose = 'to see whether a person is asked'

main(async () => {
  const questions = []
  const server = await codex(config, [era === 'modern' ? '--enable' : '--disable', 'mcp_2026_07_28'], {
    heard: message => note(who, message),
    asked (question) {
      questions.push(question)
      const [field, ...others] = Object.entries(question.requestedSchema.properties)
      assert.deepEqual(others, [], 'the form has one field')
      const [name, schema] = field
      assert.deepEqual(question.requestedSchema.required, [name], 'the choice is required')
      assert.ok(!('default' in schema), 'the choice has no default')
      const choices = schema.enum ?? schema.oneOf.map(choice => choice.const)
      assert.deepEqual([...choices].sort(), ['approve', 'deny'])
      const accept = content => ({ action: 'accept', content, _meta: null })
      return { approve: accept({ [name]: 'approve' }), deny: accept({ [name]: 'deny' }), empty: accept({}), decline: { action: 'decline', content: null, _meta: null }, wait: undefined }[how]
    }
  })
  const call = async (tool, args) => {
    const { isError, structuredContent } = await server.call(tool, args)
    return { refused: isError === true, ...structuredContent }
  }
  const began = Date.now()
  const got = await call('lease_credential', { credential: 'asked-e2e', ttl: '10m', delivery: 'value', purpose })
  const took = Date.now() - began
  assert.equal(questions.length, 1, 'one question')
  const { mode, message } = questions[0]
  assert.equal(mode, 'form')
  console.log(`after ${took} ms: ${JSON.stringify({ ...got, value: got.value && '[the value]' })}\n${message}`)
  hidden(message)
  for (const part of ['asked-e2e', 'value', '10m', purpose, ...kind === 'stdio' ? [who] : []]) assert.ok(message.includes(part), `the question does not say ${part}`)
  assert.match(message, /the agent says[^\n]*\n?.*to see whether a person is asked\W*$/is, 'what the agent says comes last, and is labelled so')

  switch (how) {
    case 'approve':
      assert.equal(got.status, 'granted')
      assert.equal(got.value, keys.asked)
      assert.equal((await call('release_lease', { lease_id: got.lease_id })).status, 'released')
      break
    case 'deny':
    case 'decline':
      assert.equal(got.error.code, 'approval_denied')
      break
    case 'empty': // some clients accept a form that nobody has seen
      console.log(JSON.stringify(got))
      assert.notEqual(got.status, 'granted')
      assert.equal(got.value, undefined)
      break
    case 'wait': { // nobody answers: the call comes back in time, and an operator can still decide
      assert.equal(got.status, 'approval_required')
      assert.ok(took < 46_000, 'a tool call is held for too long')
      const { id } = got.approval
      const resumed = call('lease_credential', { approval_id: id }) // waits as well
      await sleep(300)
      await ok(command, ['approve', id])
      const granted = await resumed
      assert.equal(granted.status, 'granted')
      assert.equal(granted.value, keys.asked)
      const again = await call('lease_credential', { approval_id: id })
      assert.ok(again.refused, 'an approval is good for one lease')
      await call('release_lease', { lease_id: granted.lease_id })
    }
  }
  server.drop()
  const trail = (await ok(command, ['audit', '--json', '--credential', 'asked-e2e'])).out
  hidden(trail)
})
