// What every client does with keylease: look, borrow, hand back. Only how the three calls travel differs.
import assert from 'node:assert/strict'

const credential = 'openai-e2e'
const value = 'sk-fake-e2e-openai' // as in seed.yaml

// lend runs the story over call(tool, arguments), which returns an MCP CallToolResult.
export async function lend (call, purpose) {
  const { credentials } = answer(await call('list_credentials', {}))
  const listed = credentials.find(c => c.name === credential)
  assert.ok(listed, `list_credentials does not show ${credential}`)
  assert.equal(listed.type, 'api-key')
  assert.ok(!JSON.stringify(credentials).includes('sk-fake'), 'list_credentials shows a value')

  const asked = Date.now()
  const lease = answer(await call('lease_credential', { credential, ttl: '30m', purpose }))
  assert.equal(lease.status, 'granted')
  assert.match(lease.lease_id, /^ls_/)
  assert.equal(lease.credential, credential)
  assert.equal(lease.delivery, 'value')
  assert.equal(lease.value, value)
  assert.equal(lease.ttl, '30m')
  const minutes = (Date.parse(lease.expires_at) - asked) / 60_000
  assert.ok(minutes > 29 && minutes < 31, `a lease of 30m ends in ${minutes} minutes`)

  const released = answer(await call('release_lease', { lease_id: lease.lease_id }))
  assert.equal(released.lease_id, lease.lease_id)
  assert.equal(released.status, 'released')
}

// answer checks that the result says the same to clients that read its text and to those that read its structure.
function answer (result) {
  const text = result.content?.[0]?.text
  assert.ok(!result.isError, `tool error: ${text}`)
  assert.deepEqual(JSON.parse(text), result.structuredContent)
  return result.structuredContent
}

// main runs fn and ends the process: a client's forgotten timer must not keep it alive.
export async function main (fn) {
  try {
    await fn()
    process.exit(0)
  } catch (err) {
    console.error(err)
    process.exit(1)
  }
}
